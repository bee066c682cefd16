"""The server benchmark's parts: starting and stopping a server, weighing it, and the report; no Ray here."""

import json
import socket
import sys
from pathlib import Path
from types import ModuleType

import httpx
import pytest

from fewshard_loadtest import Plan
from fewshard_loadtest.measure import Sample, summarise

ROOT = Path(__file__).parents[2]
FAKE_SERVER = """
import http.server, signal, subprocess, sys

class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200 if self.path == "/v2/health/ready" else 404)
        self.end_headers()

child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
signal.signal(signal.SIGTERM, lambda *_: (child.kill(), sys.exit(0)))
print("starting", flush=True)
http.server.HTTPServer(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()
"""


@pytest.fixture
def process(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import bench_process

    return bench_process


@pytest.fixture
def report_module(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import bench_report

    return bench_report


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def test_a_server_is_awaited_weighed_and_stopped(process: ModuleType, tmp_path: Path) -> None:
    script = tmp_path / "fake.py"
    script.write_text(FAKE_SERVER)
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    with process.serving([sys.executable, str(script), str(port)], url, tmp_path / "log") as server:
        assert httpx.get(f"{url}/v2/health/ready").is_success
        weighed = process.memory_of(server.pid)
    assert server.returncode is not None
    assert "starting" in (tmp_path / "log").read_text()
    names = [entry.name for entry in weighed]
    assert any(name.endswith("fake.py") for name in names)
    assert len(weighed) == 2, "the child is weighed too"
    assert all(0 < entry.pss_mib <= entry.rss_mib < 1000 for entry in weighed)


def test_a_server_that_leaves_is_an_error(process: ModuleType, tmp_path: Path) -> None:
    command = [sys.executable, "-c", "import sys; sys.exit(3)"]
    with (
        pytest.raises(process.BenchmarkError, match="left with code 3"),
        process.serving(command, f"http://127.0.0.1:{free_port()}", tmp_path / "log"),
    ):
        pytest.fail("the block must not run")


def test_a_server_that_is_never_ready_is_an_error_and_is_stopped(
    process: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(process, "READY_TIMEOUT_S", 0.5)
    command = [sys.executable, "-c", "import time; time.sleep(60)"]
    with (
        pytest.raises(process.BenchmarkError, match="not ready within"),
        process.serving(command, f"http://127.0.0.1:{free_port()}", tmp_path / "log"),
    ):
        pytest.fail("the block must not run")
    assert not process.psutil.Process().children()


@pytest.mark.parametrize(
    ("command", "role"),
    [
        (["ray::ServeReplica:app:Host.run extra"], "ray::ServeReplica:app:Host.run"),
        (["/usr/bin/python", "/a/b/fewshard", "serve"], "python fewshard"),
        (["/a/haproxy", "-db", "-f", "x.cfg"], "haproxy"),
        ([], "unknown"),
    ],
)
def test_roles_are_short(process: ModuleType, command: list[str], role: str) -> None:
    assert process._role(command) == role


def test_the_report_holds_every_run_and_adds_up_the_memory(report_module: ModuleType, tmp_path: Path) -> None:
    plan = Plan("http://h", "m", num_users=64, duration_s=2.0)
    run = summarise(plan, [Sample(0.5, 12.345, None), Sample(0.6, 1.0, "x")], begun_at=0.0, generator_cpu=0.5)
    memory = [report_module.Memory("raylet", 100.0, 60.0), report_module.Memory("gcs", 50.0, 40.4)]
    report_module.Report("bench", {"echo": [run]}, {"echo": memory}).write(tmp_path / "out")
    text = (tmp_path / "out/server.md").read_text()
    assert "| echo | m | classify | 64 | 2 | 1 | 0.5 | 12.35 | 12.35 | 0.50 |" in text
    assert "| echo | **together** |  | 100 |" in text
    stored = json.loads((tmp_path / "out/server.json").read_text())
    assert stored["runs"]["echo"][0]["p50_ms"] == 12.345
    assert stored["memory"]["echo"][0] == {"name": "raylet", "rss_mib": 100.0, "pss_mib": 60.0}
    assert {"date", "commit", "cpu", "cores", "ray", "torch"} <= set(stored["machine"])
