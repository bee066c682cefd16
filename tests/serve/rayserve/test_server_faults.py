"""A real server whose processes are killed, hang, are updated, or die while they load. Tests run in order."""

import os
import signal
import threading
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path

import httpx
import pytest

pytestmark = pytest.mark.server

MODELS = [{"name": "twice", "path": "dense", "replicas": {"min": 2}}]


@pytest.fixture(scope="module")
def server(start_server):
    return start_server(MODELS).wait_until_ready()


class Clients:
    """Eight that send one request after the other on lasting connections, and never again what failed."""

    def __init__(self, server, model, *, by_gateway=False):
        self.outcomes, self._stop = Counter(), threading.Event()
        path, named = ("/classify", {"model": model}) if by_gateway else (f"/v2/models/{model}/classify", {})
        self._url, self._body = server.url + path, {"inputs": "sleep 0.01", **named}
        self._threads = [threading.Thread(target=self._run, daemon=True) for _ in range(8)]

    def __enter__(self):
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_):
        self._stop.set()
        for thread in self._threads:
            thread.join(60)

    def _run(self):
        with httpx.Client(timeout=40) as session:
            while not self._stop.is_set():
                try:
                    self.outcomes[session.post(self._url, json=self._body).status_code] += 1
                except httpx.HTTPError as error:
                    self.outcomes[repr(error)] += 1


def until(condition, within_s=90):
    give_up_at = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < give_up_at
        time.sleep(0.2)


def has_two_others(server, before):
    """Whether two replicas answer, and these are not those of `before`."""
    stats = httpx.get(f"{server.url}/v2/models/twice/stats", timeout=10)
    is_whole = stats.status_code == 200 and stats.json()["replicas"] == 2
    return is_whole and not before & set(server.replicas("twice"))


def test_a_killed_replica_costs_no_request(server):
    (first, second) = server.replicas("twice")
    with Clients(server, "twice") as clients:
        time.sleep(1)
        os.kill(first, signal.SIGKILL)
        until(lambda: has_two_others(server, {first}))
    assert set(clients.outcomes) == {200}
    assert second in server.replicas("twice")


def pids(server, title):
    """Processes of the server whose command line begins so, or runs a program of that name."""
    found = {}
    for pid in server.processes():
        with suppress(OSError):
            command = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
            found[pid] = command[0].decode()
    return {pid for pid, name in found.items() if name.startswith(title) or Path(name).name == title}


@pytest.mark.parametrize(
    "title",
    [
        "ray::ServeController",
        # There is one: while the next one starts, a busy machine lets requests wait too long.
        pytest.param("ray::ServeReplica:gateway", marks=pytest.mark.slow),
        pytest.param("ray::ProxyActor", marks=pytest.mark.slow),  # Serve misses these two after half a minute
        pytest.param("ray::HAProxyManager", marks=pytest.mark.slow),
    ],
)
def test_no_other_killed_process_costs_a_request(server, title):
    (victim,) = pids(server, title)
    with Clients(server, "twice", by_gateway="gateway" in title) as clients:
        until(lambda: clients.outcomes[200] > 20)
        os.kill(victim, signal.SIGKILL)
        until(lambda: pids(server, title) - {victim})
        before = clients.outcomes[200]
        until(lambda: clients.outcomes[200] > before + 100)
    assert set(clients.outcomes) - ({503} if "gateway" in title else set()) == {200}


def test_a_killed_haproxy_is_back_before_serve_notices(server):
    """What is on its connections is lost with it; whoever comes later is answered."""
    until(lambda: len(pids(server, "haproxy")) == 1)  # its predecessor may be ending
    managers, (victim,) = pids(server, "ray::HAProxyManager"), pids(server, "haproxy")
    os.kill(victim, signal.SIGKILL)
    until(lambda: pids(server, "haproxy") - {victim})
    with Clients(server, "twice") as clients:
        until(lambda: clients.outcomes[200] > 20)
    assert clients.outcomes[503] == 0
    assert pids(server, "ray::HAProxyManager") == managers


@pytest.mark.slow
def test_a_hanging_model_is_found_in_seconds_and_nobody_waits_for_it(server, tmp_path):
    before = set(server.replicas("twice"))
    for _ in range(10):
        server.classify("twice", "1")
    began_at = time.monotonic()
    answer = server.classify("twice", f"hang {tmp_path / 'hung'}", timeout_s=40)
    assert answer.status_code == 200, answer.text
    assert time.monotonic() - began_at < 10
    until(lambda: len(before & set(server.replicas("twice"))) == 1)
    assert time.monotonic() - began_at < 45


@pytest.mark.slow
def test_a_changed_file_replaces_the_model_without_losing_a_request(server):
    until(lambda: has_two_others(server, set()))
    before = set(server.replicas("twice"))
    server.write({**server.config, "models": [{**MODELS[0], "path": "moe"}]})
    with Clients(server, "twice") as clients:
        server.signal(signal.SIGHUP)
        server.wait_for("updated twice")
        until(lambda: has_two_others(server, before))
    assert set(clients.outcomes) == {200}
    config = httpx.get(f"{server.url}/v2/models/twice/config").json()
    assert config["kind"] == "moe"


@pytest.mark.slow
def test_an_update_that_cannot_be_loaded_changes_nothing(server):
    server.write({**server.config, "models": [{**MODELS[0], "path": "missing"}]})
    with Clients(server, "twice") as clients:
        server.signal(signal.SIGHUP)
        server.wait_for("no checkpoint for twice")
        server.wait_for("not updated: model-twice")
    assert set(clients.outcomes) == {200}
    assert server.classify("twice", "1").json()["predictions"]


def kind(server):
    """The kind of the model that answers now; None if none does."""
    return httpx.get(f"{server.url}/v2/models/twice/config", timeout=10).json().get("kind")


@pytest.mark.slow
def test_an_update_to_a_model_that_answers_nobody_is_taken_back(server, tmp_path):
    before = kind(server)
    (tmp_path / "broken").touch()  # a model of this kind raises at each text
    server.write({**server.config, "models": [{**MODELS[0], "path": str(tmp_path / "broken")}]})
    with Clients(server, "twice") as clients:
        server.signal(signal.SIGHUP)
        server.wait_for("not updated: model-twice cannot answer, and goes back to what it was")
        until(lambda: server.classify("twice", "1").status_code == 200)
    assert clients.outcomes[500] > 0, "it passes what it is asked before it takes over"
    until(lambda: kind(server) == before)


@pytest.mark.slow
def test_replicas_that_die_at_their_start_wait_and_say_why(start_server):
    server = start_server([{"name": "bad", "path": "deadly", "replicas": {"min": 1}}])
    assert server.wait() == 1
    assert "model-bad: 1 replicas have died or failed while they started" in server.output
    assert "the application model-bad cannot start" in server.output


def test_nobody_notices_that_serve_has_neither_proxy_nor_manager(server):
    with Clients(server, "twice") as clients:
        until(lambda: clients.outcomes[200] > 20)
        for pid in pids(server, "ray::ProxyActor") | pids(server, "ray::HAProxyManager"):
            os.kill(pid, signal.SIGKILL)
        until(lambda: clients.outcomes[200] > 300)
    assert set(clients.outcomes) == {200}


def test_a_server_whose_control_store_dies_ends_and_leaves_nothing(server):
    (gcs,) = pids(server, "gcs_server")
    folders = server.work_dirs()
    assert folders
    os.kill(gcs, signal.SIGKILL)
    assert server.wait() not in (0, -signal.SIGKILL)
    until(lambda: not server.processes())
    assert not [folder for folder in folders if Path(folder).exists()]
    with pytest.raises(httpx.ConnectError):
        httpx.get(f"{server.url}/v2/health/live")
