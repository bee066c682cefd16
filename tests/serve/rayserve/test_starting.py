"""What happens before Ray starts: ports, environment, signals; and the small helpers of the launcher."""

import asyncio
import os
import signal
import socket
import subprocess
import sys
import threading
from importlib.util import find_spec
from pathlib import Path

import pytest

from fewshard_serve.errors import StartError
from fewshard_serve.rayserve import cluster
from fewshard_serve.rayserve.cluster import ray_cluster
from fewshard_serve.rayserve.environment import (
    ALWAYS,
    BINARY,
    FREE_PORTS,
    HAPROXY_FILES,
    TOKEN_FILE,
)
from fewshard_serve.rayserve.haproxy import has_haproxy, write_wrapper
from fewshard_serve.rayserve.signals import CallThread, LoopThread, stop_request


@pytest.fixture
def taken_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        yield listener.getsockname()[1]


def test_a_taken_port_ends_the_command_before_ray_is_imported(start_server, taken_port, monkeypatch):
    monkeypatch.setenv("PYTHONPROFILEIMPORTTIME", "1")
    server = start_server([{"name": "a", "path": "dense"}], port=taken_port)
    assert server.wait() == 1
    assert "StartError: port" in server.output
    imported = {line.rpartition("|")[2].strip() for line in server.lines}
    assert "fewshard_serve.config" in imported
    assert "ray" not in imported


@pytest.fixture
def starts(monkeypatch):
    """How each start of Ray shall end; those that were not made are left."""
    outcomes = []

    def init(address, num_cpus_wanted):
        if (outcome := outcomes.pop(0)) is not None:
            raise outcome

    monkeypatch.setattr(cluster, "_init", init)
    return outcomes


def test_a_ray_that_starts_too_slowly_is_started_again(starts, caplog):
    starts += [Exception("The current node timed out during startup."), None]
    with ray_cluster(None, 1):
        assert starts == []
    assert "starting it again" in caplog.text


@pytest.mark.parametrize(
    ("address", "words", "num_left"),
    [
        (None, "no room", 2),
        ("10.0.0.1:6379", "timed out during startup", 2),
        (None, "timed out during startup", 0),
    ],
)
def test_a_ray_that_cannot_start_is_told(starts, address, words, num_left):
    starts += [Exception(words)] * 3
    with pytest.raises(StartError, match=words), ray_cluster(address, 1):
        pass
    assert len(starts) == num_left


@pytest.mark.parametrize(("has_shm", "folder"), [(True, None), (False, "/the/runs/folder")])
def test_ray_starts_without_shared_memory_too(monkeypatch, has_shm, folder):
    import ray

    told = {}
    monkeypatch.setattr(ray, "init", lambda **options: told.update(options))
    monkeypatch.setattr(cluster.os, "access", lambda path, mode: has_shm)
    monkeypatch.setenv("RAY_TMPDIR", "/the/runs/folder")
    cluster._init(None, 1)
    assert told["_plasma_directory"] == folder


def environment(code, **env):
    """What `code` prints in a process where nothing of Ray is set but `env`."""
    clean = {key: value for key, value in os.environ.items() if not key.startswith("RAY_")}
    done = subprocess.run(
        [sys.executable, "-c", f"import os\n{code}"],
        env={**clean, **env},
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout.split()


PREPARE = (
    "import tempfile\nfrom fewshard_serve.rayserve.environment import *\n"
    "folder = tempfile.TemporaryDirectory()\nprepare_environment(folder.name)\n"
)


def test_every_variable_is_set_before_ray_is_imported():
    names = [*ALWAYS, "RAY_SERVE_ENABLE_HA_PROXY", "RAY_SERVE_HAPROXY_SOCKET_PATH", *FREE_PORTS]
    printed = environment(
        f"{PREPARE}import sys\nprint(*(os.environ[n] for n in {names}), 'ray' in sys.modules)"
    )
    assert " ".join(printed).startswith(" ".join(ALWAYS.values()))
    assert printed[-1] == "False"
    assert len(set(printed[-1 - len(FREE_PORTS) : -1])) == len(FREE_PORTS)


def test_what_the_user_has_set_wins():
    code = f"{PREPARE}print(os.environ['RAY_USAGE_STATS_ENABLED'])"
    assert environment(code, RAY_USAGE_STATS_ENABLED="1") == ["1"]


@pytest.mark.parametrize("env", [{"HOME": "/proc"}, {}])
def test_rays_token_is_the_runs_own_and_not_in_the_home(env, monkeypatch):
    monkeypatch.delenv("HOME", raising=False)
    code = f"{PREPARE}path = os.environ['RAY_AUTH_TOKEN_PATH']\nprint(path.startswith(folder.name))"
    code += "\nprint(oct(os.stat(path).st_mode & 0o777), len(open(path).read()))"
    assert environment(code, **env) == ["True", "0o600", "64"]
    assert environment(f"{PREPARE}print(os.environ['RAY_AUTH_TOKEN_PATH'])", RAY_AUTH_TOKEN_PATH="x") == ["x"]


def test_rays_sessions_are_in_the_runs_folder():
    code = f"{PREPARE}print(os.environ['RAY_TMPDIR'] == folder.name)"
    assert environment(code) == ["True"]
    assert environment(f"{PREPARE}print(os.environ['RAY_TMPDIR'])", RAY_TMPDIR="/x") == ["/x"]


def test_ray_knows_every_switch_that_we_set():
    """A switch that Ray renames would be ignored in silence."""
    folder = Path(find_spec("ray").origin).parent
    files = [folder / "serve/_private/constants.py", *(folder / "_common/usage").glob("*.py")]
    source = "".join(path.read_text() for path in files)
    raylet = (folder / "core/src/ray/raylet/raylet").read_bytes()
    names = [*ALWAYS, *FREE_PORTS, *HAPROXY_FILES, TOKEN_FILE, BINARY, "RAY_SERVE_ENABLE_HA_PROXY"]
    unknown = [name for name in names if f'"{name}"' not in source]
    assert [name for name in unknown if name.removeprefix("RAY_").encode() not in raylet] == []


def test_the_first_signal_asks_the_second_ends_at_once():
    with stop_request() as stop:
        assert not stop.wait(0.01)
        signal.raise_signal(signal.SIGTERM)
        assert stop.wait(5)
        assert stop.is_asked
        assert not stop.is_at_once
        signal.raise_signal(signal.SIGINT)
        assert stop.is_at_once


def test_sighup_asks_once_for_a_reload_and_stops_nothing():
    with stop_request() as stop:
        assert not stop.take_reload()
        signal.raise_signal(signal.SIGHUP)
        assert stop.take_reload()
        assert not stop.take_reload()
        assert not stop.is_asked


def test_a_terminal_that_is_closed_stops_the_server(monkeypatch):
    monkeypatch.setattr("fewshard_serve.rayserve.signals.has_terminal", lambda: True)
    with stop_request() as stop:
        signal.raise_signal(signal.SIGHUP)
        assert stop.take_reload()
        monkeypatch.setattr("fewshard_serve.rayserve.signals.has_terminal", lambda: False)
        signal.raise_signal(signal.SIGHUP)
        assert stop.is_asked
        assert not stop.take_reload()


def test_a_waiting_main_thread_is_woken_by_a_signal():
    timer = threading.Timer(0.1, os.kill, (os.getpid(), signal.SIGTERM))
    with stop_request() as stop:
        timer.start()
        assert stop.wait(5)


def test_former_handlers_come_back():
    before = signal.getsignal(signal.SIGTERM)
    with stop_request():
        assert signal.getsignal(signal.SIGTERM) != before
    assert signal.getsignal(signal.SIGTERM) == before


def test_one_loop_serves_many_calls_and_keeps_time():
    async def loop_id():
        return id(asyncio.get_running_loop())

    with LoopThread() as calls:
        assert calls.run(loop_id(), 1.0) == calls.run(loop_id(), 1.0)
        with pytest.raises(TimeoutError):
            calls.run(asyncio.sleep(5), 0.05)
    assert not [thread for thread in threading.enumerate() if thread.name == "fewshard-calls"]


def test_blocking_calls_keep_their_order_and_one_that_is_late_is_not_made():
    made, go = [], threading.Event()
    calls = CallThread()
    first = calls.start(lambda: go.wait(60) and made.append("first"))
    with pytest.raises(TimeoutError):
        calls.run(lambda: made.append("late"), 0.05)
    second = calls.start(lambda: made.append("second"))
    go.set()
    first.result(60), second.result(60)
    assert made == ["first", "second"]
    with pytest.raises(LookupError, match="as it is"):
        calls.run(lambda: {}["as it is"], 60)


def test_the_gateway_needs_no_torch():
    code = "import fewshard_serve.rayserve.gateway, sys; print('torch' in sys.modules, 'ray' in sys.modules)"
    assert environment(code) == ["False", "True"]


@pytest.mark.skipif(not has_haproxy(), reason="ray[serve] brings HAProxy on Linux only")
def test_the_wrapper_runs_haproxy(tmp_path):
    wrapper = write_wrapper(str(tmp_path))
    assert wrapper is not None
    shown = subprocess.run([wrapper, "-v"], capture_output=True, text=True, check=True).stdout
    assert shown.startswith("HAProxy version")


def test_a_wrapper_that_cannot_run_is_not_used(tmp_path, monkeypatch):
    monkeypatch.setattr("fewshard_serve.rayserve.haproxy._runs", lambda script: False)
    assert write_wrapper(str(tmp_path)) is None
