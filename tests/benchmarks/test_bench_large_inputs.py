"""The benchmark of large inputs sends what it says, each caller from an address of its own."""

import importlib.util
import json
import sys
import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture
def large_inputs(monkeypatch):
    spec = importlib.util.spec_from_file_location("large_inputs", ROOT / "benchmarks/large_inputs.py")
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "large_inputs", module)  # its dataclass looks itself up
    spec.loader.exec_module(module)
    monkeypatch.setattr(module, "LEAD_S", 0.05)
    return module


@pytest.fixture
def server():
    """A server that refuses large bodies and answers the others; `seen` counts callers and statuses."""
    seen = Counter()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self):
            body = self.rfile.read(int(self.headers["Content-Length"]))
            status = 429 if len(json.loads(body)["inputs"]) > 1000 or len(body) > 1000 else 200
            seen[self.client_address[0], status] += 1
            self.send_response(status)
            self.send_header("Content-Length", "0")
            self.send_header("Retry-After", "0.01")
            self.end_headers()

        def log_message(self, *_):
            pass

    serving = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    serving.seen = seen
    thread = threading.Thread(target=serving.serve_forever)
    thread.start()
    yield serving
    serving.shutdown()
    thread.join()
    serving.server_close()


def test_callers_send_large_inputs_beside_the_probes(large_inputs, server):
    load = large_inputs.Load("large", "m", [large_inputs.LETTERS])
    url = f"http://127.0.0.1:{server.server_port}"
    with ThreadPoolExecutor(4) as pool:
        probes, answers = large_inputs.under_load(pool, url, "m", 0.2, load)
    found = large_inputs.summary(probes)
    assert found["answered"] == 1
    assert {caller for caller, status in server.seen if status == 429} == {
        f"127.0.0.{n}" for n in (2, 3, 4, 5)
    }
    assert server.seen["127.0.0.9", 200] == found["num"]
    assert answers["429"] >= 4


def test_unanswered_probes_count_as_the_slowest(large_inputs):
    found = large_inputs.summary([1.0] * 97 + [float("inf")] * 3)
    assert found == {"num": 100, "p50": 1.0, "p99": float("inf"), "answered": 0.97}


def test_the_image_is_small_as_a_file_and_as_large_as_is_allowed(large_inputs):
    assert len(large_inputs.image()) < 5000
