"""Real servers whose launcher or Ray is killed or hangs: they end in time, say why, and leave nothing.

Each test starts on the port of the one before, whose server was killed: the next start must work.
"""

import os
import signal
import time
from pathlib import Path

import httpx
import psutil
import pytest

from fewshard_serve.rayserve.environment import free_ports
from fewshard_serve.rayserve.run_folder import members

pytestmark = [pytest.mark.server, pytest.mark.slow]

MODELS = [{"name": "a", "path": "dense", "admission": {"deadline_ms": 3000}}]
DEADLINE_S = 3
HEALED_S = 60
"""Generous: the machine may be busy. A server that does not end at all is what fails."""


@pytest.fixture(scope="module")
def port():
    return free_ports(1)[0]


@pytest.fixture
def start(start_server, port):
    begun = []

    def begin(models=MODELS):
        begun.append(start_server(models, port=port))
        return begun[-1]

    yield begin
    for server in begun:  # where a test has failed
        server.close()


def folder_of(server):
    """The folder of a server's run."""
    for path in Path("/tmp").glob("fewshard-*/launcher.pid"):
        if path.read_text() == f"{server.process.pid}\n":
            return path.parent
    raise AssertionError("the run has no folder")


def part(server, words):
    """The process of a run whose command or title has these words."""
    pids = [
        *members(str(folder_of(server))),
        *(each.pid for each in psutil.Process(server.process.pid).children()),
    ]
    (pid,) = {pid for pid in pids if words in " ".join(command(pid))}
    return pid


def leaves_nothing(folder, port):
    """Wait until neither a process, nor the folder, nor the port of a run is left."""
    give_up_at = time.monotonic() + HEALED_S
    while members(str(folder)) or folder.exists() or answers(port):
        assert time.monotonic() < give_up_at, (members(str(folder)), folder.exists(), answers(port))
        time.sleep(0.1)


def answers(port):
    try:
        httpx.get(f"http://127.0.0.1:{port}/v2/health/live", timeout=5)
    except httpx.ConnectError:
        return False
    except httpx.TransportError:
        return True
    return True


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        ("serve_fakes.py", -signal.SIGKILL, ""),
        ("/gcs_server ", 1, "control store (GCS) was ended by signal SIGKILL"),
        ("/raylet ", 1, "raylet was ended by signal SIGKILL"),
    ],
)
def test_what_cannot_heal_ends_and_the_next_server_starts(start, gate, words, code, said):
    server = start().wait_until_ready()
    folder, port = folder_of(server), server.config["server"]["port"]
    session = next(folder.glob("ray/session_2*"))
    assert (session / "sockets" / "raylet").is_socket()
    assert folder.stat().st_mode & 0o777 == 0o700
    pid = server.process.pid if code < 0 else part(server, words)
    if "gcs" in words:  # replicas live for a while without it
        gate.hold(server, "a")
    os.kill(pid, signal.SIGKILL)
    gate.open()
    assert server.wait(HEALED_S) == code
    for call in gate.calls:
        call.join(HEALED_S)
        assert call.response is not None, call.error
        assert call.response.status_code == 200
    leaves_nothing(folder, port)
    if said:
        server.wait_for(f"fewshard: the server ends: Ray's {said}, which Ray cannot heal; start it again")


def test_a_hanging_controller_is_no_reason_to_end_or_not_to_stop(start):
    server = start().wait_until_ready()
    folder, port = folder_of(server), server.config["server"]["port"]
    controller = part(server, "ray::ServeController")
    os.kill(controller, signal.SIGSTOP)
    server.wait_for("controller does not answer; requests are answered", 120)
    assert server.classify("a", "1").status_code == 200
    server.signal(signal.SIGTERM)
    assert server.wait(DEADLINE_S + HEALED_S) == 0
    leaves_nothing(folder, port)


def test_a_second_signal_ends_a_server_whose_ray_hangs(start, gate):
    server = start().wait_until_ready()
    folder, port = folder_of(server), server.config["server"]["port"]
    gate.hold(server, "a")
    for words in ("ray::ServeController", "/gcs_server ", "/raylet "):
        os.kill(part(server, words), signal.SIGSTOP)
    server.signal(signal.SIGTERM)
    server.signal(signal.SIGINT)
    assert server.wait(HEALED_S) == 130
    leaves_nothing(folder, port)


def test_a_request_that_is_never_answered_does_not_keep_the_server(start, gate):
    server = start().wait_until_ready()
    folder, port = folder_of(server), server.config["server"]["port"]
    gate.hold(server, "a")
    server.signal(signal.SIGTERM)
    server.wait(DEADLINE_S + HEALED_S)
    leaves_nothing(folder, port)


def test_a_signal_to_the_whole_group_while_models_load_leaves_nothing(start):
    server = start([{"name": "a", "path": "endless"}])
    give_up_at = time.monotonic() + 120
    while not answers(server.config["server"]["port"]):
        assert time.monotonic() < give_up_at, server.output
        time.sleep(0.1)
    folder, port = folder_of(server), server.config["server"]["port"]
    os.killpg(server.process.pid, signal.SIGTERM)
    assert server.wait(HEALED_S) == 0
    leaves_nothing(folder, port)


def test_a_server_that_is_killed_while_it_starts_is_no_hindrance(start):
    server = start([{"name": "a", "path": "endless"}])
    give_up_at = time.monotonic() + 120
    while not any("haproxy" in " ".join(command(pid)) for pid in server.processes()):
        assert time.monotonic() < give_up_at, server.output
        time.sleep(0.1)
    folder, port = folder_of(server), server.config["server"]["port"]
    server.process.kill()
    server = start().wait_until_ready()
    leaves_nothing_but(folder, server, port)


def leaves_nothing_but(folder, server, port):
    assert folder != folder_of(server)
    assert not members(str(folder))
    assert answers(port)
    server.signal(signal.SIGTERM)
    assert server.wait(HEALED_S) == 0


def command(pid):
    try:
        return psutil.Process(pid).cmdline()
    except psutil.NoSuchProcess:
        return []
