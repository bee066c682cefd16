"""Starting, weighing and stopping a server under test; a small HTTP server stands for one, no Ray here."""

import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import httpx
import psutil
import pytest

from fewshard_loadtest.errors import BenchmarkError
from fewshard_loadtest.peers import processes
from fewshard_loadtest.resource_usage import cpu_seconds, memory_of, role

FAKE_SERVER = """
import http.server, signal, subprocess, sys

class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200 if self.path == "/ready" else 404)
        self.end_headers()

child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
print("starting", flush=True)
http.server.HTTPServer(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()
"""
BURN = """
import subprocess, sys, time
def burn(seconds):
    until = time.process_time() + seconds
    while time.process_time() < until:
        pass
child = "import time\\nwhile time.process_time() < 0.4:\\n    pass"
burn(0.2)
subprocess.run([sys.executable, "-c", child])   # ends and is waited for
subprocess.Popen([sys.executable, "-c", child + "\\ntime.sleep(60)"])
print("started", flush=True)
time.sleep(60)
"""


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def test_a_server_is_awaited_weighed_and_stopped_with_all_it_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(processes, "LAST_CHILDREN_S", 0.2)
    script = tmp_path / "fake.py"
    script.write_text(FAKE_SERVER)
    port = free_port()
    ready, command = f"http://127.0.0.1:{port}/ready", [sys.executable, str(script), str(port)]
    with processes.serving(command, ready, tmp_path / "log") as server:
        assert httpx.get(ready).is_success
        weighed = memory_of(server.pid)
        (child,) = psutil.Process(server.pid).children()
    assert server.returncode is not None
    assert not child.is_running() or child.status() == psutil.STATUS_ZOMBIE
    assert "starting" in (tmp_path / "log").read_text()
    assert any(entry.name.endswith("fake.py") for entry in weighed)
    assert len(weighed) == 2, "the child is weighed too"
    assert all(0 < entry.pss_mib <= entry.rss_mib < 1000 for entry in weighed)


ADOPTED_WORKER = """
import subprocess, sys, time
worker = "import time; print('worker', flush=True); time.sleep(60)"
start = "import subprocess, sys; print(subprocess.Popen([sys.executable, '-c', sys.argv[1]]).pid, flush=True)"
subprocess.run([sys.executable, "-c", start, worker])
time.sleep(60)
"""


def test_a_worker_that_is_no_descendant_any_more_is_stopped_too(tmp_path, monkeypatch):
    monkeypatch.setattr(processes, "LAST_CHILDREN_S", 0.2)
    monkeypatch.setattr(processes, "_is_ready", lambda _: "worker" in (tmp_path / "log").read_text())
    with processes.serving([sys.executable, "-c", ADOPTED_WORKER], "", tmp_path / "log"):
        worker = psutil.Process(int((tmp_path / "log").read_text().split()[0]))
        assert worker.is_running()
    assert not worker.is_running() or worker.status() == psutil.STATUS_ZOMBIE


def test_sigterm_to_the_benchmark_stops_its_server(tmp_path):
    script = tmp_path / "fake.py"
    script.write_text(FAKE_SERVER)
    port = free_port()
    benchmark = f"""
import time, sys
from pathlib import Path
from fewshard_loadtest.peers.processes import serving
command = [sys.executable, {str(script)!r}, "{port}"]
with serving(command, "http://127.0.0.1:{port}/ready", Path({str(tmp_path / "log")!r})) as server:
    print(server.pid, flush=True)
    time.sleep(60)
"""
    process = subprocess.Popen([sys.executable, "-c", benchmark], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    server = psutil.Process(int(process.stdout.readline()))
    process.terminate()
    assert process.wait() == 128 + 15
    assert not server.is_running()


def test_a_server_gets_the_environment_and_folder_it_is_given(tmp_path: Path) -> None:
    code = "import os, sys; print(os.environ.get('ONLY'), os.getcwd(), len(os.environ) < 9); sys.exit(3)"
    with (
        pytest.raises(BenchmarkError, match="left with code 3"),
        processes.serving(
            [sys.executable, "-c", code], "http://127.0.0.1:9/", tmp_path / "log", {"ONLY": "this"}, tmp_path
        ),
    ):
        pytest.fail("the block must not run")
    assert (tmp_path / "log").read_text().split() == ["this", str(tmp_path), "True"]


def test_a_server_that_is_never_ready_is_an_error_and_is_stopped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(processes, "READY_TIMEOUT_S", 0.5)
    before = set(psutil.Process().children())
    command = [sys.executable, "-c", "import time; time.sleep(60)"]
    with (
        pytest.raises(BenchmarkError, match="not ready within"),
        processes.serving(command, "http://127.0.0.1:9/", tmp_path / "log"),
    ):
        pytest.fail("the block must not run")
    assert set(psutil.Process().children()) == before


def test_cpu_time_is_that_of_the_whole_tree_and_of_children_that_ended() -> None:
    process = subprocess.Popen([sys.executable, "-c", BURN], stdout=subprocess.PIPE)
    try:
        assert process.stdout is not None
        process.stdout.readline()
        give_up_at = time.monotonic() + 60
        while cpu_seconds(process.pid) < 0.9 and time.monotonic() < give_up_at:
            time.sleep(0.05)
        assert 0.9 <= cpu_seconds(process.pid) < 3.0, "0.2 + 0.4 + 0.4, in steps of 10 ms"
    finally:
        for child in psutil.Process(process.pid).children():
            child.kill()
        process.kill()
        process.communicate()
    assert cpu_seconds(process.pid) == 0.0
    assert cpu_seconds(os.getpid()) > 0.0


@pytest.mark.parametrize(
    ("command", "name"),
    [
        (["ray::ServeReplica:app:Host.run extra"], "ray::ServeReplica:app:Host.run"),
        (["/usr/bin/python", "/a/b/fewshard", "serve"], "python fewshard"),
        (["/a/haproxy", "-db", "-f", "x.cfg"], "haproxy"),
        ([], "unknown"),
    ],
)
def test_roles_are_short(command: list[str], name: str) -> None:
    assert role(command) == name
