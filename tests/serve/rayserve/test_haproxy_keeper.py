"""HAProxy as Ray Serve knows it: started again when it dies or hangs, replaced, and ended with its owner."""

import contextlib
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import httpx
import pytest

from fewshard_serve.rayserve.environment import has_haproxy
from fewshard_serve.rayserve.haproxy import stop_softly

pytestmark = pytest.mark.skipif(not has_haproxy(), reason="ray[serve] brings HAProxy on Linux only")


@pytest.fixture(scope="module")
def front(tmp_path_factory, front_type):
    one = front_type(tmp_path_factory.mktemp("front"))
    yield one
    one.close()


def answers(front):
    with contextlib.suppress(httpx.TransportError):
        return httpx.post(f"http://127.0.0.1:{front.port}/m/x", content=b"{}", timeout=20).text == "ok"
    return False


def state_of(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return ""


def has_ended(pid):
    return state_of(pid) in ("", "Z")


def keeper_and_front(front):
    """The processes that are not HAProxy: the keeper, which is the child, and the one that Serve knows."""
    first, second = front.processes("haproxy_keeper.py")
    assert first == front.proxy.pid
    return second, first


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP, signal.SIGSEGV, signal.SIGTERM])
def test_haproxy_is_started_again_and_serve_sees_nothing_of_it(front, until, number):
    (old,) = front.haproxies
    os.kill(old, number)
    until(lambda: has_ended(old) and answers(front))
    assert front.haproxies != [old]
    assert f"\nPid: {front.proxy.pid}\n" in front.admin("show info")
    assert front.proxy.poll() is None


def test_two_deaths_in_a_row_are_no_more_than_one(front, until):
    for _ in range(2):
        until(lambda: front.haproxies)
        os.kill(front.haproxies[-1], signal.SIGKILL)
    until(lambda: answers(front))
    until(lambda: len(front.haproxies) == 1)


class Probes(threading.Thread):
    """Requests on new connections, one after the other, until it is stopped."""

    def __init__(self, front):
        super().__init__()
        self._front, self._stopped, self.outcomes = front, threading.Event(), []
        self.start()

    def run(self):
        while not self._stopped.wait(0.02):
            self.outcomes.append(answers(self._front))

    def stop(self):
        self._stopped.set()
        self.join()
        return self.outcomes


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
def test_the_death_of_the_keeper_is_seen_by_nobody(front, until, number):
    keeper, serves = keeper_and_front(front)
    probes = Probes(front)
    os.kill(keeper, number)
    until(lambda: has_ended(keeper) and f"\nPid: {serves}\n" in front.admin("show info"))
    until(lambda: len(front.haproxies) == 1)
    assert all(probes.stop())


def test_without_the_process_that_serve_knows_haproxy_serves_on_until_serve_starts_another(front, until):
    keeper, serves = keeper_and_front(front)
    (proxy,) = front.haproxies
    probes = Probes(front)
    os.kill(serves, signal.SIGKILL)
    front.proxy.wait()
    until(lambda: front.admin("show info") == "")  # Serve's health check fails, and it starts another one
    assert front.haproxies == [proxy]
    front.proxy = front.spawn()
    until(lambda: has_ended(keeper) and has_ended(proxy))
    assert all(probes.stop())


@pytest.mark.parametrize("number", [None, signal.SIGSTOP])
def test_a_reload_takes_over_what_listens_also_from_processes_that_are_stopped(front, until, number):
    old, former = front.haproxies, [*reversed(keeper_and_front(front))]  # or the front would start a keeper
    probes = Probes(front) if number is None else None
    for pid in (*former, *old) if number else ():
        os.kill(pid, number)
    process, front.proxy = (
        front.proxy,
        front.spawn("-sf", str(front.proxy.pid), "-x", str(front.folder / "admin.sock")),
    )
    process.wait()
    until(lambda: all(map(has_ended, [*former, *old])))
    assert answers(front)
    assert probes is None or all(probes.stop())


def test_a_new_manager_that_knows_no_application_yet_costs_nothing(front, until):
    (proxy,) = front.haproxies
    probes = Probes(front)
    path = front.folder / "haproxy.cfg"
    good = path.read_text()
    front.write(prefix="")
    assert "backend http-" not in path.read_text()
    front.proxy.kill()
    front.proxy.wait()
    front.proxy = front.spawn()
    until(lambda: has_ended(proxy))
    path.write_text(good)
    before, front.proxy = front.proxy, front.spawn("-sf", str(front.proxy.pid))
    before.wait()
    assert all(probes.stop())


def test_a_configuration_that_cannot_be_loaded_leaves_the_old_one_running(front, until):
    until(lambda: len(front.haproxies) == 1)
    path = front.folder / "haproxy.cfg"
    good, old = path.read_text(), front.haproxies
    path.write_text(good + "nonsense\n")
    try:
        command = [str(front.folder / "haproxy"), "-db", "-f", str(path), "-dR", "-sf", str(front.proxy.pid)]
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=20)
        assert done.returncode != 0
        assert "unknown keyword 'nonsense'" in done.stderr
    finally:
        path.write_text(good)
    assert (front.haproxies, front.proxy.poll()) == (old, None)
    os.kill(old[0], signal.SIGKILL)
    until(lambda: front.haproxies not in ([], old) and answers(front))


@pytest.mark.parametrize(
    "stop", [lambda front: stop_softly(str(front.folder)), lambda front: front.proxy.terminate()]
)
def test_a_stop_is_for_good(front, stop):
    stop(front)
    assert front.proxy.wait(10) == 0
    assert front.haproxies == front.processes("haproxy_keeper.py") == []
    front.proxy = front.spawn()
    assert answers(front)


def test_it_ends_with_its_launcher_and_frees_the_port(tmp_path, front_type, until):
    launcher = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    front = front_type(tmp_path, launcher=launcher.pid)
    try:
        ours = [*front.processes("haproxy_keeper.py"), *front.haproxies]
        assert answers(front)
        launcher.kill()
        launcher.wait()
        until(lambda: all(map(has_ended, ours)))
        assert front.proxy.wait(10) == 0
    finally:
        launcher.kill()
        front.close()
