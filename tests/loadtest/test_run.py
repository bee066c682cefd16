"""Real runs of the generator, each in a process of its own, against a small HTTP server on loopback.

The server can be slow, and can be made to answer one request at a time: that is what tells an open-loop user
from a closed-loop one.
"""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from fewshard_loadtest import LoadTestError, Plan, Stage, run_headless, run_recorded
from fewshard_loadtest.measure import percentile
from fewshard_loadtest.samples_file import Recording

LOCUSTFILE = Path(__file__).parents[2] / "loadtest/fewshard_loadtest/locustfile.py"


@dataclass
class EchoServer:
    """Answers after `delay_s`; all at once, or one at a time where `turn` is a lock."""

    host: str = ""
    delay_s: float = 0.0
    status: int = 200
    answer: bytes = b'{"predictions": [[{"label": "positive", "score": 1}]], "outputs": []}'
    turn: AbstractContextManager[object] = field(default_factory=nullcontext)
    bodies: list[bytes] = field(default_factory=list)
    paths: set[str] = field(default_factory=set)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    echo: EchoServer

    def do_POST(self) -> None:
        """Read, wait, answer in one write."""
        self.echo.bodies.append(self.rfile.read(int(self.headers["Content-Length"])))
        self.echo.paths.add(self.path)
        with self.echo.turn:
            time.sleep(self.echo.delay_s)
        head = f"HTTP/1.1 {self.echo.status} OK\r\nContent-Length: {len(self.echo.answer)}\r\n\r\n"
        self.wfile.write(head.encode() + self.echo.answer)

    def log_message(self, *_args: object) -> None:
        """Keep the test's output clean."""


@pytest.fixture
def echo() -> Iterator[EchoServer]:
    handler = type("Handler", (_Handler,), {})
    http = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    http.daemon_threads = True
    handler.echo = EchoServer(f"http://127.0.0.1:{http.server_port}")
    thread = threading.Thread(target=http.serve_forever, args=(0.01,))
    thread.start()
    yield handler.echo
    http.shutdown()
    thread.join()
    http.server_close()


@pytest.fixture(autouse=True)
def _own_sentences(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("FEWSHARD_DATA", raising=False)


def test_a_closed_loop_user_waits_for_each_answer(echo: EchoServer) -> None:
    echo.delay_s = 0.05
    result = run_headless(Plan(echo.host, "m", num_users=2, duration_s=2, warmup_s=0.2))
    assert result.num_failures == 0
    assert 20 < result.rps <= 2 / 0.05 * 1.1
    assert result.p50_ms is not None
    assert result.p50_ms >= 50
    assert echo.paths == {"/v2/models/m/classify"}


def test_latencies_are_finer_than_a_millisecond(echo: EchoServer) -> None:
    result = run_headless(Plan(echo.host, "m", duration_s=0.5, warmup_s=0.1))
    assert result.p50_ms is not None
    assert 0 < result.p50_ms != round(result.p50_ms)
    assert 0 < result.generator_cpu < 1.5


@pytest.mark.parametrize(
    ("more", "verb"),
    [
        ({"protocol": "json"}, "infer"),
        ({"protocol": "json", "payload": "images"}, "infer"),
        ({"rate": 40.0}, "classify"),
        ({"payload": "images"}, "classify"),
    ],
)
def test_every_kind_of_request_reaches_its_endpoint(
    echo: EchoServer, more: dict[str, Any], verb: str
) -> None:
    plan = Plan(echo.host, "m", duration_s=0.5, warmup_s=0, num_items=2, **more)
    result = run_headless(plan)
    assert result.num_failures == 0
    assert result.num_requests > 3
    assert echo.paths == {f"/v2/models/m/{verb}"}


def test_the_open_loop_user_keeps_its_rate_when_the_server_is_slow(echo: EchoServer) -> None:
    """A closed-loop user would send one request a 0.4 s; this one must send forty."""
    echo.delay_s = 0.4
    result = run_headless(Plan(echo.host, "m", rate=100, duration_s=2, warmup_s=0.5))
    assert result.num_failures == 0
    assert 60 < result.num_requests < 260, "at most four standard deviations above a Poisson count of 200"
    assert result.p50_ms is not None
    assert result.p50_ms < 600, "all wait at the same time, not one after the other"


def test_several_open_loop_users_share_the_rate(echo: EchoServer) -> None:
    plan = Plan(echo.host, "m", num_users=4, rate=100, duration_s=2, warmup_s=0.2)
    assert 60 < run_headless(plan).num_requests < 260, "four times the rate would be 800"


def test_open_loop_latency_includes_the_wait_for_a_busy_server(echo: EchoServer) -> None:
    """One at a time, 50 ms each, asked 40 times a second: the queue grows by 1 s every second."""
    echo.delay_s, echo.turn = 0.05, threading.Lock()
    result = run_headless(Plan(echo.host, "m", rate=40, duration_s=2, warmup_s=0))
    assert result.num_failures == 0
    assert result.max_ms is not None
    assert result.max_ms > 800, "the last ones waited for all before them"
    assert result.num_requests > 50


STALLING = """
import gevent, json, sys, time
from fewshard_loadtest.headless import run_here
from fewshard_loadtest.measure import Plan
from fewshard_loadtest.users import PoissonUser

def stall():
    until = time.perf_counter() + 0.6
    while time.perf_counter() < until:
        pass

def on_start(user):
    begin(user)
    gevent.spawn_later(0.7, stall)

begin, PoissonUser.on_start = PoissonUser.on_start, on_start
plan = Plan(sys.argv[1], "m", rate=50, duration_s=2, warmup_s=0)
print(json.dumps(run_here(plan).as_dict()))
"""


def test_open_loop_latency_includes_the_generators_own_stall(echo: EchoServer) -> None:
    """For 0.6 of 2 s the generator does nothing: what was due then is sent late, and says so."""
    done = subprocess.run(
        [sys.executable, "-c", STALLING, echo.host], capture_output=True, text=True, check=True
    )
    result = json.loads(done.stdout)
    assert result["num_requests"] > 65, "the schedule does not shrink by what was due in the stall"
    assert result["p90_ms"] > 150
    assert result["p50_ms"] < 100


def test_failures_are_reported_with_their_reason(echo: EchoServer) -> None:
    echo.status, echo.answer = 429, b'{"error": "later"}'
    result = run_headless(Plan(echo.host, "m", duration_s=0.3, warmup_s=0))
    assert result.num_failures == result.num_requests > 0
    assert result.p50_ms is None
    assert ["429" in error for error in result.errors] == [True]


def test_an_answer_that_is_not_one_is_a_failure(echo: EchoServer) -> None:
    echo.answer = b"{}"
    result = run_headless(Plan(echo.host, "m", duration_s=0.3, warmup_s=0))
    assert result.num_failures == result.num_requests > 0
    assert any('lacks "predictions"' in error for error in result.errors)


def test_no_server_is_a_result_with_failures_alone() -> None:
    result = run_headless(Plan("http://127.0.0.1:9", "m", duration_s=0.3, warmup_s=0))
    assert result.num_failures == result.num_requests > 0


def test_a_generator_that_cannot_run_says_why(echo: EchoServer) -> None:
    with pytest.raises(LoadTestError, match="invalid choice"):
        run_headless(Plan(echo.host, "m", protocol="no-such"))


def test_the_seed_decides_the_order(echo: EchoServer) -> None:
    orders = []
    for seed in (1, 1, 2):
        echo.bodies = []
        run_headless(Plan(echo.host, "m", duration_s=0.3, warmup_s=0, seed=seed))
        orders.append([json.loads(body)["inputs"] for body in echo.bodies[:8]])
    assert orders[0] == orders[1] != orders[2]


def test_locusts_own_command_runs_the_file(echo: EchoServer, tmp_path: Path) -> None:
    arguments = [
        "-f",
        str(LOCUSTFILE),
        "--host",
        echo.host,
        "--model",
        "m",
        "--protocol",
        "json",
        "--headless",
    ]
    done = subprocess.run(
        [sys.executable, "-m", "locust", *arguments, "-u", "2", "-t", "4s", "--json", "--skip-log"],
        cwd=tmp_path,
        env={**os.environ, "LOCUST_STOP_TIMEOUT": "5"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    (entry,) = json.loads(done.stdout)
    assert (entry["name"], entry["num_failures"]) == ("/v2/models/m/infer", 0)
    assert entry["num_requests"] > 2


def test_importing_the_package_imports_neither_locust_nor_a_server() -> None:
    code = (
        "import sys, fewshard_loadtest, fewshard_loadtest.payloads, fewshard_loadtest.__main__\n"
        "heavy = {'locust', 'gevent', 'torch', 'ray', 'transformers', 'fewshard_serve', 'fewshard_models'}\n"
        "print(sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_a_recording_holds_what_the_result_counts(echo: EchoServer, tmp_path: Path) -> None:
    plan = Plan(echo.host, "m", rate=60.0, duration_s=2, warmup_s=0.5)
    result = run_recorded(plan, tmp_path / "a.npz")
    recording = Recording.load(tmp_path / "a.npz")
    assert len(recording.measured) == result.num_requests > 60
    assert len(recording.rows) > result.num_requests, "the warm-up is kept, before 0"
    assert recording.rows["sent_s"].min() < 0
    assert percentile(recording.latencies_ms().tolist(), 0.99) == pytest.approx(result.p99_ms, abs=0.002)
    assert (recording.models, recording.labels, recording.errors) == (("m",), ("positive",), ())
    assert sorted(set(recording.rows["item"][:60])) == [*range(60)], "each once before any again"


def test_several_generators_share_the_rate_and_one_recording(echo: EchoServer, tmp_path: Path) -> None:
    plan = Plan(echo.host, "m", rate=100.0, duration_s=2, warmup_s=0.3)
    result = run_recorded(plan, tmp_path / "a.npz", num_generators=2)
    # Twice the rate would be 400; a generator that starts late on a busy machine sends less, not more.
    assert 60 < result.num_requests < 260
    assert result.plan == plan


def test_stages_change_the_rate(echo: EchoServer, tmp_path: Path) -> None:
    stages = (Stage(1.0, 20.0), Stage(1.0, 150.0))
    run_recorded(Plan(echo.host, "m", stages=stages, duration_s=2, warmup_s=0.3), tmp_path / "a.npz")
    sent = Recording.load(tmp_path / "a.npz").measured["sent_s"]
    assert sum(sent < 1) < 60 < sum(sent >= 1)


def test_a_mix_asks_each_model_for_its_share(echo: EchoServer, tmp_path: Path) -> None:
    plan = Plan(echo.host, "", mix=(("a", 3.0), ("b", 1.0)), rate=100.0, duration_s=2, warmup_s=0)
    run_recorded(plan, tmp_path / "a.npz")
    recording = Recording.load(tmp_path / "a.npz")
    assert len(recording.latencies_ms("a")) > 1.5 * len(recording.latencies_ms("b")) > 0
    assert echo.paths == {"/v2/models/a/classify", "/v2/models/b/classify"}


INTERRUPTED = """
import sys
from pathlib import Path
from fewshard_loadtest import Plan, run_recorded

try:
    run_recorded(Plan(sys.argv[1], "m", rate=50.0, duration_s=30, warmup_s=0), Path(sys.argv[2]))
except KeyboardInterrupt:
    print("interrupted")
"""


def test_what_was_measured_before_ctrl_c_is_kept(echo: EchoServer, tmp_path: Path) -> None:
    command = [sys.executable, "-c", INTERRUPTED, echo.host, str(tmp_path / "a.npz")]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    while len(echo.bodies) < 40:
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    assert process.communicate(timeout=30)[0] == "interrupted\n"
    assert 20 < len(Recording.load(tmp_path / "a.npz").measured) < 1500


def test_a_payload_that_is_not_there_is_named(echo: EchoServer) -> None:
    with pytest.raises(LoadTestError, match=r"no\.csv: cannot be read"):
        run_headless(Plan(echo.host, "m", payload="no.csv"))
