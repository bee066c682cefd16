"""The doors of both applications: tokens and scopes, request ids, traces, slow bodies, the access log."""

import asyncio
import json
import logging

import pytest

from fewshard_serve.auth import hash_of
from fewshard_serve.core import Caller
from fewshard_serve.errors import Forbidden, Unauthorized
from fewshard_serve.http.gateway import GatewayApp
from fewshard_serve.http.host import HostApp
from fewshard_serve.http.middleware import AccessMiddleware, AccessSettings
from fewshard_serve.logs import ACCESS, JsonFormatter, LogSettings, TextFormatter
from fewshard_serve.protocol.limits import Limits
from local_service import LocalService

READER, APP, OPS = "reader-secret", "app-secret", "ops-secret"
TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"


def bearer(token):
    return {"Authorization": f"Bearer {token}"}


@pytest.fixture
def doors(tmp_path):
    path = tmp_path / "tokens.yaml"
    scopes = {READER: "", APP: "predict", OPS: "predict, admin"}
    lines = [
        f"  - {{name: {token[:3]}, sha256: {hash_of(token).hex()}, scopes: [{what}]}}"
        for token, what in scopes.items()
    ]
    path.write_text("\n".join(["tokens:", *lines]))
    return AccessMiddleware(AccessSettings(tokens_file=str(path), logs=LogSettings(requests=True)))


@pytest.fixture
def guarded_host(doors, text_model, counted_requests):
    return HostApp(
        LocalService({"sst2": text_model}),
        doors=doors,
        on_request=lambda *seen: counted_requests.append(seen[:3]),
    )


@pytest.fixture
def guarded_gateway(doors, gateway):
    return GatewayApp(gateway._service, doors=doors)


PREDICT = ("POST", "/v2/models/sst2/classify", {"json": {"inputs": "a"}})


@pytest.mark.parametrize(
    ("method", "path", "token", "status"),
    [
        ("GET", "/v2/models/sst2/ready", None, 401),
        ("GET", "/v2/models/sst2/ready", READER, 200),
        ("GET", "/v2/models/sst2", None, 401),
        ("GET", "/v2/models/sst2/config", READER, 200),
        ("GET", "/v2/models/sst2/metrics", READER, 200),
        ("POST", "/v2/models/sst2/classify", None, 401),
        ("POST", "/v2/models/sst2/classify", READER, 403),
        ("POST", "/v2/models/sst2/classify", APP, 200),
        ("POST", "/v2/models/sst2/classify/", READER, 403),
        ("POST", "/v2/models/sst2/versions/1/classify", READER, 403),
        ("POST", "/v2/models/sst2/placement", APP, 403),
        ("POST", "/v2/models/nobody/classify", None, 401),
        ("DELETE", "/v2/models/sst2", APP, 403),
    ],
)
def test_a_host_asks_for_the_scope_of_each_path(guarded_host, call, method, path, token, status):
    headers = bearer(token) if token else {}
    answer = call(guarded_host, method, path, headers=headers, json={"inputs": "a"})
    assert answer.status_code == status
    if status in (401, 403):
        assert answer.json()["code"] == {401: "unauthorized", 403: "forbidden"}[status]
        assert ("www-authenticate" in answer.headers) == (status == 401)


@pytest.mark.parametrize(
    ("method", "path", "token", "status"),
    [
        ("GET", "/v2/health/live", None, 200),
        ("GET", "/v2/health/ready", None, 503),
        ("GET", "/docs", None, 200),
        ("GET", "/openapi.json", None, 200),
        ("GET", "/", None, 200),
        ("GET", "/console/app.js", None, 200),
        ("GET", "/metrics", None, 401),
        ("GET", "/metrics", READER, 200),
        ("POST", "/v2/repository/index", READER, 200),
        ("POST", "/classify", READER, 403),
        ("POST", "/classify", APP, 200),
        ("POST", "/v2/tokens/reload", APP, 403),
        ("POST", "/v2/tokens/reload", OPS, 200),
        ("GET", "/nowhere", None, 401),
    ],
)
def test_the_gateway_asks_for_the_scope_of_each_path(guarded_gateway, call, method, path, token, status):
    body = {"content": b""} if "index" in path else {"json": {"model": "sst2", "inputs": "a"}}
    answer = call(guarded_gateway, method, path, headers=bearer(token) if token else {}, **body)
    assert answer.status_code == status


@pytest.mark.parametrize(
    "path", ["", "/ready", "/config", "/stats", "/classify", "/versions/1/ready", "/nowhere"]
)
@pytest.mark.parametrize("method", ["GET", "POST", "DELETE", "OPTIONS"])
@pytest.mark.parametrize("headers", [{}, bearer("wrong")], ids=["no token", "a wrong one"])
def test_without_a_token_nobody_learns_which_models_there_are(
    guarded_host, guarded_gateway, call, method, path, headers
):
    """Neither whether a model of that name is served, nor whether it has replicas of its own."""
    answers = [
        call(app, method, f"/v2/models/{name}{path}", headers={**headers, "X-Request-Id": "q"})
        for app in (guarded_host, guarded_gateway)
        for name in ("sst2", "slow", "nobody")
    ]
    assert {answer.status_code for answer in answers} == {401}
    assert len({(answer.content, str(sorted(answer.headers.items()))) for answer in answers}) == 1


def test_without_a_token_ready_names_no_model(guarded_gateway, gateway, call):
    for path in ("/v2/health/ready", "/health", "/ping"):
        told = call(guarded_gateway, "GET", path)
        assert (told.status_code, told.json()["ready"]) == (503, False)
        assert "slow" not in told.text
        assert "slow" in call(gateway, "GET", path).text


def test_the_launcher_has_a_token_of_its_own(tmp_path):
    (tmp_path / "tokens.yaml").write_text("tokens: []")
    file = str(tmp_path / "tokens.yaml")
    doors = AccessMiddleware(AccessSettings(tokens_file=file, launcher_sha256=hash_of(OPS).hex()))
    assert doors.admit(f"Bearer {OPS}", None, "", None) == Caller("fewshard")
    assert len(doors.tokens) == 0
    doors.reload_tokens()
    with pytest.raises(Forbidden):
        doors.admit(f"Bearer {OPS}", None, "", "predict")
    with pytest.raises(Unauthorized):
        AccessMiddleware(AccessSettings(tokens_file=file)).admit(f"Bearer {OPS}", None, "", None)


def test_the_page_needs_no_token_but_what_it_shows_does(guarded_gateway, call):
    wants_json = {"Accept": "application/json"}
    assert call(guarded_gateway, "GET", "/", headers=wants_json).status_code == 401
    assert call(guarded_gateway, "GET", "/", headers={**wants_json, **bearer(READER)}).status_code == 200
    assert "sst2" not in call(guarded_gateway, "GET", "/").text
    assert call(guarded_gateway, "POST", "/", headers={"Accept": "text/html"}).status_code == 401


def test_a_reload_counts_tokens_and_replicas(guarded_gateway, call, tmp_path):
    assert call(guarded_gateway, "POST", "/v2/tokens/reload", headers=bearer(OPS)).json() == {
        "tokens": 3,
        "replicas": 3,
    }
    (tmp_path / "tokens.yaml").write_text("tokens: [")
    answer = call(guarded_gateway, "POST", "/v2/tokens/reload", headers=bearer(OPS))
    assert (answer.status_code, answer.json()["code"]) == (400, "malformed")
    assert "the old tokens stay" in answer.json()["error"]


def test_without_a_file_there_is_nothing_to_reload(gateway, call):
    assert call(gateway, "POST", "/v2/tokens/reload").status_code == 404


def test_refusals_are_counted_under_no_models_name(guarded_host, call, counted_requests):
    method, path, body = PREDICT
    call(guarded_host, method, path, **body)
    call(guarded_host, method, path, headers=bearer(READER), **body)
    assert counted_requests == [("unknown", "classify", "unauthorized"), ("unknown", "classify", "forbidden")]


def test_no_secret_reaches_logs_answers_or_metrics(guarded_host, call, caplog, counted_requests):
    method, path, body = PREDICT
    with caplog.at_level(logging.DEBUG):
        answers = [
            call(guarded_host, method, path, headers=bearer(token), **body)
            for token in (APP, READER, "wrong-secret")
        ]
        answers.append(call(guarded_host, method, path, headers=bearer(APP), json={"inputs": "bug"}))
    assert [answer.status_code for answer in answers] == [200, 403, 401, 500]
    seen = [json.dumps(JsonFormatter().format(record)) for record in caplog.records]
    seen += [f"{answer.headers} {answer.text}" for answer in answers] + [str(counted_requests)]
    assert len(seen) > len(answers)
    assert not [line for line in seen if "secret" in line.replace("secret detail", "")]


@pytest.mark.parametrize("given", ["abc-123", "A/b=c+d:e.f_g@h", "x" * 128])
def test_a_sane_request_id_comes_back(host, call, given):
    assert (
        call(host, "GET", "/v2/models/sst2", headers={"X-Request-Id": given}).headers["x-request-id"] == given
    )


@pytest.mark.parametrize("given", ["", "two words", "x" * 129, "<script>", "é".encode("latin-1"), b"\x7f"])
def test_any_other_is_replaced(host, call, given):
    answered = call(host, "GET", "/v2/models/sst2", headers={"X-Request-Id": given}).headers["x-request-id"]
    assert len(answered) == 32
    assert int(answered, 16)


def test_errors_carry_the_request_id_too(host, call):
    assert call(host, "GET", "/v2/models/x", headers={"X-Request-Id": "q1"}).headers["x-request-id"] == "q1"


def test_the_id_is_sent_once_where_the_server_echoes_it(text_model, call):
    app = HostApp(LocalService({"sst2": text_model}), doors=AccessMiddleware(echoes_id=False))
    assert "x-request-id" not in call(app, "GET", "/v2/models/sst2").headers


def lines_of(records):
    return [json.loads(JsonFormatter().format(record)) for record in records if record.name == ACCESS.name]


def test_a_request_is_one_line_with_its_ids(guarded_host, call, caplog):
    method, path, body = PREDICT
    formatted = []

    class Keep(logging.Handler):
        def emit(self, record):
            formatted.append(json.loads(JsonFormatter().format(record)))

    handler = Keep()
    ACCESS.addHandler(handler)
    ACCESS.setLevel(logging.INFO)
    try:
        traced = {"X-Request-Id": "q7", "traceparent": f"00-{TRACE}-00f067aa0ba902b7-01"}
        call(guarded_host, method, path, headers={**bearer(APP), **traced}, **body)
        call(guarded_host, "GET", "/v2/models/a%0Ab")
    finally:
        ACCESS.removeHandler(handler)
        ACCESS.setLevel(logging.NOTSET)
    first, second = formatted
    wanted = {"request_id": "q7", "trace_id": TRACE, "method": "POST", "path": path, "status": 200}
    assert first.items() >= {**wanted, "model": "sst2", "caller": "app", "level": "INFO"}.items()
    assert first["ms"] > 0
    assert (second["status"], second["caller"], second["model"]) == (401, "", "unknown")
    assert "trace_id" not in second
    assert second["request_id"] != "q7"


def test_a_line_of_text_stays_one_line():
    record = logging.LogRecord(
        "fewshard.access", logging.INFO, "", 0, "%s %r %d", ("GET", "/a\nb", 404), None
    )
    assert TextFormatter().format(record) == "INFO fewshard.access: GET '/a\\nb' 404"


def test_json_lines_hold_the_traceback():
    try:
        raise ValueError("first\nsecond")
    except ValueError as error:
        info = (ValueError, error, error.__traceback__)
    record = logging.LogRecord("fewshard", logging.ERROR, "", 0, "failed", (), info)
    line = JsonFormatter().format(record)
    assert "\n" not in line
    assert json.loads(line)["traceback"].endswith("ValueError: first\nsecond")


def scope_of(path, **more):
    return {"type": "http", "method": "POST", "path": path, "headers": [], "query_string": b"", **more}


def test_a_body_that_trickles_is_cut(text_model):
    """One byte now and then keeps no handler for longer than max_body_s."""
    app = HostApp(LocalService({"sst2": text_model}), limits=Limits(max_body_s=0.15))
    sent = []

    async def receive():
        await asyncio.sleep(0.04)
        return {"type": "http.request", "body": b" ", "more_body": True}

    async def send(message):
        sent.append(message)

    async def drive():
        await asyncio.wait_for(app(scope_of("/v2/models/sst2/classify"), receive, send), 5)

    asyncio.run(drive())
    assert sent[0]["status"] == 408
    assert (b"connection", b"close") in sent[0]["headers"]
    assert b"max_body_s" in sent[1]["body"]


@pytest.mark.parametrize(("token", "status"), [(None, 401), ("none", 401), (READER, 403)])
def test_who_may_not_come_in_keeps_no_connection_with_an_unread_body(guarded_host, call, token, status):
    headers = {} if token is None else bearer(token)
    method, path, more = PREDICT
    refused = call(guarded_host, method, path, headers=headers, **more)
    assert (refused.status_code, refused.headers["connection"]) == (status, "close")
    empty = call(guarded_host, "GET", "/v2/models/sst2")
    assert (empty.status_code, empty.headers.get("connection")) == (401, None)


@pytest.mark.parametrize(("is_behind_haproxy", "caller"), [(True, "203.0.113.9"), (False, "198.51.100.1")])
def test_only_our_own_proxy_may_say_who_asks(text_model, is_behind_haproxy, caller):
    names = []
    doors = AccessMiddleware(AccessSettings(is_behind_haproxy=is_behind_haproxy))
    doors.note = lambda request, response: names.append(request.caller.name)
    app = HostApp(LocalService({"sst2": text_model}), doors=doors)
    forwarded = [(b"x-forwarded-for", b"10.0.0.1"), (b"x-forwarded-for", b"203.0.113.9")]
    scope = scope_of("/v2/models/sst2", method="GET", headers=forwarded, client=("198.51.100.1", 4321))

    async def nothing(*_):
        return {"type": "http.request"}

    asyncio.run(app(scope, nothing, nothing))
    assert names == [caller]


def test_the_priority_is_for_those_with_the_right(doors, text_model, call, tmp_path):
    (tmp_path / "tokens.yaml").write_text(
        f"tokens: [{{name: vip, sha256: {hash_of(OPS).hex()}, scopes: [predict, priority]}},"
        f" {{name: app, sha256: {hash_of(APP).hex()}, scopes: [predict]}}]"
    )
    doors.reload_tokens()
    app = HostApp(LocalService({"sst2": text_model}), doors=doors)
    method, path, body = PREDICT
    statuses = [
        call(app, method, path, headers={**bearer(token), "X-Request-Priority": priority}, **body).status_code
        for token, priority in [(OPS, "high"), (APP, "high"), (APP, "normal"), (OPS, "soon")]
    ]
    assert statuses == [200, 403, 200, 400]
    assert text_model.callers == [Caller("vip", True), Caller("app")]


def test_without_tokens_callers_are_told_apart_by_address(gateway, text_model, call):
    call(gateway, "POST", "/classify", json={"model": "sst2", "inputs": "a"})
    call(
        gateway,
        "POST",
        "/classify",
        json={"model": "sst2", "inputs": "a"},
        headers={"X-Request-Priority": "high"},
    )
    assert text_model.callers == [Caller("127.0.0.1"), Caller("127.0.0.1", True)]


@pytest.mark.parametrize(("length", "is_closed"), [("12", False), ("70000", True), (None, True)])
def test_a_refusal_comes_before_the_body_is_read(host, text_model, counted_requests, length, is_closed):
    text_model.is_full = True
    headers = [(b"content-length", length.encode())] if length else []
    sent = []

    async def receive():
        raise AssertionError("nothing is read")

    async def send(message):
        sent.append(message)

    asyncio.run(host(scope_of("/v2/models/sst2/classify", headers=headers), receive, send))
    assert sent[0]["status"] == 429
    assert (b"retry-after", b"4") in sent[0]["headers"]
    assert ((b"connection", b"close") in sent[0]["headers"]) == is_closed
    assert counted_requests == [("sst2", "classify", "overloaded")]


def test_a_gateway_without_tokens_lets_everybody_in(gateway: GatewayApp, call):
    assert call(gateway, "POST", "/classify", json={"model": "sst2", "inputs": "a"}).status_code == 200
