"""How peers are asked and answer: real runs of the generator against a small HTTP server that speaks each."""

import json
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from fewshard_loadtest import Plan, run_headless
from fewshard_loadtest.adapters import DIALECTS

TEXT = "a café, twice"
ASKED = {
    "fewshard": ("/v2/models/m/classify", {"inputs": TEXT}),
    "litserve": ("/predict", {"text": TEXT}),
    "rayserve": ("/", {"text": TEXT}),
    "bentoml": ("/classify", {"texts": [TEXT]}),
    "mosec": ("/inference", {"text": TEXT}),
    "infinity": ("/classify", {"model": "m", "input": [TEXT]}),
}
TWO = [{"label": "bad", "score": 0.2}, {"label": "good", "score": 0.8}]
ANSWERED = {
    "fewshard": {"predictions": [TWO]},
    "litserve": TWO[1],
    "rayserve": TWO[1],
    "bentoml": [TWO[1]],
    "mosec": TWO[1],
    "infinity": {"data": [TWO]},
}


@dataclass
class Peer:
    """What a server heard, and its one answer."""

    host: str = ""
    answer: bytes = b""
    heard: list[tuple[str, object]] = field(default_factory=list)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    peer: Peer

    def do_POST(self) -> None:
        """Remember the request and answer in one write."""
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        assert self.headers["Content-Type"] == "application/json"
        self.peer.heard.append((self.path, body))
        head = f"HTTP/1.1 200 OK\r\nContent-Length: {len(self.peer.answer)}\r\n\r\n"
        self.wfile.write(head.encode() + self.peer.answer)

    def log_message(self, *_args: object) -> None:
        """Keep the test's output clean."""


@pytest.fixture
def peer() -> Iterator[Peer]:
    handler = type("Handler", (_Handler,), {})
    http = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    http.daemon_threads = True
    handler.peer = Peer(f"http://127.0.0.1:{http.server_port}")
    thread = threading.Thread(target=http.serve_forever, args=(0.01,))
    thread.start()
    yield handler.peer
    http.shutdown()
    thread.join()
    http.server_close()


def test_every_dialect_is_tested() -> None:
    assert set(DIALECTS) == set(ASKED) == set(ANSWERED)


@pytest.mark.parametrize("name", DIALECTS)
def test_a_peer_is_asked_in_its_own_words(name: str) -> None:
    request = DIALECTS[name].request("m", [TEXT])
    assert (request.path, json.loads(request.body)) == ASKED[name]
    assert request.expected in json.dumps(ANSWERED[name]).encode()


@pytest.mark.parametrize("name", DIALECTS)
def test_the_best_label_is_read_from_its_answer(name: str) -> None:
    assert DIALECTS[name].label_in(json.dumps(ANSWERED[name]).encode()) == "good"


@pytest.mark.parametrize("name", DIALECTS)
@pytest.mark.parametrize("answer", [b"[]", b"{}", b"null", b"<html>"])
def test_an_answer_without_a_label_is_told(name: str, answer: bytes) -> None:
    with pytest.raises(ValueError, match=r"names no label|Expecting value"):
        DIALECTS[name].label_in(answer)


def test_a_peer_is_asked_for_one_text_a_request() -> None:
    with pytest.raises(ValueError, match="one text a request, not 2"):
        DIALECTS["bentoml"].request("m", ["a", "b"])


@pytest.mark.parametrize("name", ["bentoml", "infinity"])
def test_the_generator_speaks_it(peer: Peer, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("FEWSHARD_DATA", raising=False)
    peer.answer = json.dumps(ANSWERED[name]).encode()
    result = run_headless(Plan(peer.host, "m", duration_s=0.3, warmup_s=0.1, dialect=name, server_pid=1))
    assert result.num_failures == 0 < result.num_requests
    assert result.server_cpu_s is not None
    path, body = peer.heard[0]
    assert path == ASKED[name][0]
    assert isinstance(body, dict)
    assert set(body) == set(ASKED[name][1])
