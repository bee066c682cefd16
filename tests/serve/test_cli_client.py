"""`fewshard predict` and `fewshard models` against an HTTP server on loopback that answers from a table."""

import base64
import io
import json
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import pytest

from fewshard_serve import cli
from fewshard_serve.client import Client, ClientError

CLASSIFIED = {
    "model": "m",
    "predictions": [[{"label": "positive", "score": 0.75}, {"label": "negative", "score": 0.25}]],
    "usage": {"items": 1, "tokens": 7},
    "timings_ms": {"queue": 0.25, "infer": 3.5},
}
CONFIG = {
    "task": "text",
    "kind": "moe",
    "dtype": "bf16",
    "device": "cpu",
    "card": {"parameters_total": 5_000_000, "parameters_active": 1_000_000, "macs": 2e7, "accuracy": 0.9},
}


@dataclass
class FakeServer:
    """`answers` maps "METHOD path" to a status and a body; `seen` are the JSON bodies that came."""

    url: str
    answers: dict[str, tuple[int, Any]] = field(default_factory=dict)
    seen: list[Any] = field(default_factory=list)


class _Handler(BaseHTTPRequestHandler):
    fake: FakeServer

    def _answer(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.fake.seen.append(json.loads(body) if body else None)
        status, answer = self.fake.answers.get(
            f"{self.command} {self.path}", (404, {"error": "no such path"})
        )
        data = answer if isinstance(answer, bytes) else json.dumps(answer).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    do_GET = do_POST = _answer  # noqa: N815 -- http.server chooses these names

    def log_message(self, *_args: object) -> None:
        """Keep the test's output clean."""


@pytest.fixture
def server() -> Iterator[FakeServer]:
    handler = type("Handler", (_Handler,), {})
    http = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    handler.fake = FakeServer(f"http://127.0.0.1:{http.server_port}")
    thread = threading.Thread(target=http.serve_forever, args=(0.01,))
    thread.start()
    yield handler.fake
    http.shutdown()
    thread.join()
    http.server_close()


def test_predict_sends_one_request_and_prints_a_table(
    server: FakeServer, capsys: pytest.CaptureFixture[str]
) -> None:
    server.answers["POST /v2/models/m/classify"] = (200, CLASSIFIED)
    assert cli.main(["predict", "m", "a fine film", "--top-k", "2", "--url", server.url]) == 0
    assert server.seen == [{"inputs": ["a fine film"], "top_k": 2}]
    lines = capsys.readouterr().out.splitlines()
    assert [line.split() for line in lines[:3]] == [
        ["input", "label", "score"],
        ["a", "fine", "film", "positive", "0.7500"],
        ["negative", "0.2500"],
    ]
    assert lines[-1] == "1 item, 7 tokens, queue 0.25 ms, infer 3.50 ms"


def test_predict_json_is_the_servers_answer(server: FakeServer, capsys: pytest.CaptureFixture[str]) -> None:
    server.answers["POST /v2/models/m/classify"] = (200, CLASSIFIED)
    assert cli.main(["predict", "m", "x", "--json", "--url", server.url]) == 0
    assert json.loads(capsys.readouterr().out) == CLASSIFIED


def test_predict_sends_an_image_as_a_data_url(server: FakeServer, tmp_path: Path) -> None:
    server.answers["POST /v2/models/m/classify"] = (200, CLASSIFIED)
    image = tmp_path / "my cat.PNG"
    image.write_bytes(b"\x89PNG not really")
    assert cli.main(["predict", "m", str(image), "--url", server.url]) == 0
    kind, data = server.seen[0]["inputs"][0].split(",")
    assert kind == "data:image/png;base64"
    assert base64.b64decode(data) == b"\x89PNG not really"


def test_predict_takes_a_sentence_that_ends_like_a_file_for_a_text(server: FakeServer) -> None:
    server.answers["POST /v2/models/m/classify"] = (200, CLASSIFIED)
    assert cli.main(["predict", "m", "look at cat.png", "--url", server.url]) == 0
    assert server.seen[0]["inputs"] == ["look at cat.png"]


def test_predict_says_which_image_is_missing(server: FakeServer, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["predict", "m", "none.png", "--url", server.url]) == 2
    assert "none.png cannot be read" in capsys.readouterr().err
    assert server.seen == []


def test_predict_reads_lines_from_stdin(
    server: FakeServer, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    twice = {**CLASSIFIED, "predictions": CLASSIFIED["predictions"] * 2}
    server.answers["POST /v2/models/m/classify"] = (200, twice)
    monkeypatch.setattr("sys.stdin", io.StringIO("first line\nsecond\n"))
    assert cli.main(["predict", "m", "-", "--url", server.url]) == 0
    assert server.seen[0]["inputs"] == ["first line", "second"]
    monkeypatch.setattr("sys.stdin", io.StringIO(""))
    assert cli.main(["predict", "m", "-", "--url", server.url]) == 2
    assert "stdin held no text" in capsys.readouterr().err


def test_the_servers_own_reason_is_shown(server: FakeServer, capsys: pytest.CaptureFixture[str]) -> None:
    refusal = {"error": "no model named 'x' is served here; there are: m", "code": "unknown_model"}
    server.answers["POST /v2/models/x/classify"] = (404, refusal)
    assert cli.main(["predict", "x", "text", "--url", server.url]) == 1
    assert capsys.readouterr().err == f"fewshard: error: {server.url} answered 404: {refusal['error']}\n"


def test_a_model_name_cannot_leave_its_place_in_the_url(server: FakeServer) -> None:
    server.answers["POST /v2/models/..%2Fx%3Fy/classify"] = (200, CLASSIFIED)
    assert Client(server.url).classify("../x?y", ["a"]).raw == CLASSIFIED


def test_models_lists_what_is_served(server: FakeServer, capsys: pytest.CaptureFixture[str]) -> None:
    index = [
        {"name": "m", "version": "1", "state": "READY", "reason": ""},
        {"name": "late", "version": "1", "state": "LOADING", "reason": "reading weights"},
    ]
    server.answers["POST /v2/repository/index"] = (200, index)
    server.answers["GET /v2/models/m/config"] = (200, CONFIG)
    assert cli.main(["models", "--url", server.url]) == 0
    header, ready, late = capsys.readouterr().out.splitlines()
    assert header.split()[:2] == ["model", "state"]
    assert ready.split() == [
        "m",
        "READY",
        "text",
        "moe",
        "5",
        "M",
        "1",
        "M",
        "20",
        "M",
        "90.0",
        "%",
        "bf16",
        "cpu",
    ]
    assert late.split() == ["late", "LOADING", "reading", "weights", "-", "-", "-", "-", "-", "-", "-", "-"]


def test_models_says_which_engine_computes_it(server: FakeServer, capsys: pytest.CaptureFixture[str]) -> None:
    server.answers["POST /v2/repository/index"] = (200, [{"name": "m", "state": "READY"}])
    server.answers["GET /v2/models/m/config"] = (200, {**CONFIG, "execution": {"engine": "openvino"}})
    assert cli.main(["models", "--url", server.url]) == 0
    assert "bf16 in openvino" in capsys.readouterr().out


def test_models_json_holds_index_and_configs(server: FakeServer, capsys: pytest.CaptureFixture[str]) -> None:
    server.answers["POST /v2/repository/index"] = (200, [{"name": "m", "state": "READY"}])
    server.answers["GET /v2/models/m/config"] = (200, CONFIG)
    assert cli.main(["models", "--json", "--url", server.url]) == 0
    assert json.loads(capsys.readouterr().out) == [{"name": "m", "state": "READY", "config": CONFIG}]


def test_no_server_is_said_with_what_to_do(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["models", "--url", "http://127.0.0.1:9"]) == 1
    error = capsys.readouterr().err
    assert "no server answers at http://127.0.0.1:9" in error
    assert "fewshard serve" in error


@pytest.mark.parametrize("url", ["localhost:8000", "ftp://127.0.0.1", "http://[bad"])
def test_an_unusable_url_is_said(url: str) -> None:
    with pytest.raises(ClientError, match="pass --url"):
        Client(url).index()


@pytest.mark.parametrize(
    ("answer", "expected"), [(b"<html>", "without JSON"), ({"not": "a list"}, "is no list")]
)
def test_another_kind_of_server_is_recognised(server: FakeServer, answer: object, expected: str) -> None:
    server.answers["POST /v2/repository/index"] = (200, answer)
    with pytest.raises(ClientError, match=expected):
        Client(server.url).index()


def test_a_slow_server_is_given_up() -> None:
    def too_late(_request: httpx.Request) -> httpx.Response:
        raise httpx.ReadTimeout("too late")

    with pytest.raises(ClientError, match="did not answer within 2 s"):
        Client("http://a", timeout_s=2, transport=httpx.MockTransport(too_late)).index()


PLAN = ["plan", "uniform", "--shards", "2", "--layers", "1", "--experts", "4", "--model", "m", "--apply"]


def test_plan_apply_asks_what_it_costs_before_it_has_it(
    server: FakeServer, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    change = {"moves": 3, "bytes": 5_000_000, "replicas": 2}
    answers = iter([{**change, "applied": False}, {**change, "applied": True}])
    monkeypatch.setattr(Client, "place", lambda self, *asked: server.seen.append(asked) or next(answers))
    assert cli.main([*PLAN, "--url", server.url]) == 0
    (model, planned), (_, applied) = server.seen
    assert model == "m"
    assert planned["model"] == "m"
    assert sorted(planned["slots"][0][0] + planned["slots"][0][1]) == [0, 1, 2, 3]
    assert applied == {**planned, "apply": True}
    said = capsys.readouterr().out
    assert "3 experts to load (5.0 MB) on 2 replicas" in said
    assert said.rstrip().endswith("in force")


def test_plan_apply_with_nothing_to_do_changes_nothing(
    server: FakeServer, capsys: pytest.CaptureFixture[str]
) -> None:
    same = {"moves": 0, "bytes": 0, "replicas": 1, "applied": False}
    server.answers["POST /v2/models/m/placement"] = (200, same)
    assert cli.main([*PLAN, "--json", "--url", server.url]) == 0
    assert len(server.seen) == 1
    captured = capsys.readouterr()
    assert json.loads(captured.out)["model"] == "m"
    assert "nothing to do" in captured.err


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        ((200, {"moves": 1, "bytes": 1, "replicas": 1, "applied": False}), "not put the placement in force"),
        ((404, {"error": "m is not sharded"}), "m is not sharded"),
    ],
)
def test_plan_apply_says_why_not(
    server: FakeServer, capsys: pytest.CaptureFixture[str], answer: tuple[int, Any], message: str
) -> None:
    server.answers["POST /v2/models/m/placement"] = answer
    assert cli.main([*PLAN, "--url", server.url]) == 1
    assert message in capsys.readouterr().err
