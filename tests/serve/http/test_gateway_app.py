"""The gateway's application over ASGI: server metadata, health, index, classify, pages, OpenAPI."""

import base64
import json
import re
from collections.abc import Callable
from html.parser import HTMLParser
from typing import Any

import httpx
import pytest

from fewshard_core.values import EncodedImage, TextInput
from fewshard_serve import __version__
from fewshard_serve.http.gateway import GatewayApp
from fewshard_serve.http.host import HostApp
from fewshard_serve.http.openapi import openapi_document
from fewshard_serve.http.responses import HTTP_STATUS
from fewshard_serve.http.routes import ROUTES
from fewshard_serve.http.static import PAGE, console_files
from fewshard_serve.protocol.classify import ClassifyResponse, GatewayClassifyRequest
from fewshard_serve.protocol.limits import Limits
from fewshard_serve.protocol.schemas import IndexEntry, InferRequestBody, ServerMetadata

Call = Callable[..., httpx.Response]
Model = Any
Counted = list[tuple[str, str, str]]

DOCUMENTED = [route for route in ROUTES if route.summary]


def test_server_metadata(gateway: GatewayApp, call: Call) -> None:
    response = call(gateway, "GET", "/v2")
    ServerMetadata.model_validate_json(response.content)
    assert response.json()["name"] == "fewshard"
    assert "binary_tensor_data" in response.json()["extensions"]
    assert call(gateway, "GET", "/v2/").json() == response.json()


def test_health(gateway: GatewayApp, call: Call) -> None:
    assert call(gateway, "GET", "/v2/health/live").json() == {"live": True}
    waiting = call(gateway, "GET", "/v2/health/ready")
    assert waiting.status_code == 503
    assert waiting.json() == {
        "error": "not ready yet: slow; try again soon",
        "code": "not_ready",
        "ready": False,
    }
    gateway._service.waiting = []  # type: ignore[attr-defined]  # the fake's own field
    assert call(gateway, "GET", "/v2/health/ready").json() == {"ready": True}


def test_the_index_lists_every_model(gateway: GatewayApp, call: Call) -> None:
    lines = call(gateway, "POST", "/v2/repository/index").json()
    assert [(line["name"], line["state"]) for line in lines] == [
        ("sst2", "READY"),
        ("cifar", "READY"),
        ("slow", "LOADING"),
    ]
    assert lines[2]["reason"] == "reading weights"
    for line in lines:
        IndexEntry.model_validate(line)
    assert call(gateway, "POST", "/v2/repository/index", json={}).json() == lines
    assert call(gateway, "POST", "/v2/repository/index", json={"ready": False}).json() == lines
    assert call(gateway, "POST", "/v2/repository/index", json={"ready": True}).json() == lines[:2]


@pytest.mark.parametrize("action", ["load", "unload"])
def test_a_model_is_loaded_and_unloaded(gateway: GatewayApp, call: Call, action: str) -> None:
    path = f"/v2/repository/models/{{}}/{action}"
    answer = call(gateway, "POST", path.format("sst2"), json={"parameters": {"unload_dependents": False}})
    state = {"load": "READY", "unload": "UNAVAILABLE"}[action]
    assert (answer.status_code, answer.json()) == (200, {"name": "sst2", "state": state})
    assert call(gateway, "POST", path.format("sst2")).status_code == 200, "a body is not needed"
    refused = call(gateway, "POST", path.format("nobody"))
    assert (refused.status_code, refused.json()["code"]) == (409, "change_refused")


@pytest.mark.parametrize(
    ("action", "body", "why"),
    [
        ("load", {"parameters": {"config": "{}"}}, "'config' is not taken"),
        ("load", {"parameters": {"file:1/model.onnx": "AAAA"}}, "is not taken"),
        ("load", {"parameters": {"confg": "{}"}}, "did you mean 'config'"),
        ("unload", {"parameters": {"unload_dependents": True}}, "unload each model by its name"),
        ("load", {"parameters": 1}, "must be empty or"),
        ("load", {"config": "{}"}, "must be empty or"),
        ("load", [], "must be empty or"),
    ],
)
def test_what_a_change_would_not_hear_is_refused(
    gateway: GatewayApp, call: Call, action: str, body: Any, why: str
) -> None:
    answer = call(gateway, "POST", f"/v2/repository/models/sst2/{action}", json=body)
    assert answer.status_code == 400
    assert why in answer.json()["error"]


@pytest.mark.parametrize("body", [b"[]", b"x", b'{"ready": 1}', b"null", b'{"repository_name": "other"}'])
def test_an_index_request_with_mistakes_is_malformed(gateway: GatewayApp, call: Call, body: bytes) -> None:
    assert call(gateway, "POST", "/v2/repository/index", content=body).status_code == 400


def test_the_index_reads_no_large_body(gateway: GatewayApp, call: Call) -> None:
    large = b'{"ready": true' + b" " * 100_000 + b"}"
    assert call(gateway, "POST", "/v2/repository/index", content=large).status_code == 413


def test_metrics(gateway: GatewayApp, call: Call) -> None:
    response = call(gateway, "GET", "/metrics")
    assert response.text == "fewshard_model_info 1\n"
    assert response.headers["content-type"].startswith("text/plain; version=0.0.4")


def test_classify_finds_the_model_in_the_body(
    gateway: GatewayApp, call: Call, text_model: Model, counted_requests: Counted
) -> None:
    response = call(
        gateway,
        "POST",
        "/classify",
        json={"model": "sst2", "inputs": ["a", {"text": "b", "text_pair": "c"}], "truncate": False},
        headers={"X-Request-Timeout-Ms": "2000"},
    )
    assert response.status_code == 200
    ClassifyResponse.model_validate_json(response.content)
    (asked,) = text_model.calls
    assert asked["inputs"] == [TextInput("a"), TextInput("b", "c")]
    assert asked["truncate"] is False
    assert asked["timeout_s"] == pytest.approx(2.0, abs=0.2)
    assert counted_requests == [("sst2", "classify", "ok")]


def test_classify_reads_images_both_ways(gateway: GatewayApp, call: Call, image_model: Model) -> None:
    encoded = base64.b64encode(b"PNG").decode()
    first = call(gateway, "POST", "/classify", json={"model": "cifar", "inputs": encoded})
    bare = {"content": b"PNG", "headers": {"Content-Type": "image/png"}}
    second = call(gateway, "POST", "/classify?model=cifar&top_k=1", **bare)
    assert (first.status_code, second.status_code) == (200, 200)
    assert [each["inputs"] for each in image_model.calls] == [[EncodedImage(b"PNG")]] * 2
    assert len(second.json()["predictions"][0]) == 1
    assert call(gateway, "POST", "/classify", **bare).status_code == 400
    assert call(gateway, "POST", "/classify?model=sst2", **bare).status_code == 415


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        ({"inputs": "a"}, 400, "malformed"),
        ({"model": 1, "inputs": "a"}, 400, "malformed"),
        ({"model": "nope", "inputs": "a"}, 404, "unknown_model"),
        ({"model": "slow", "inputs": "a"}, 503, "not_ready"),
        ({"model": "sst2", "inputs": []}, 400, "malformed"),
        ({"model": "sst2", "inputs": "unusable"}, 422, "unusable_item"),
        ({"model": "sst2", "inputs": "overloaded"}, 429, "overloaded"),
        ({"model": "sst2", "inputs": "bug"}, 500, "internal"),
        ({"model": "sst2", "inputs": "nan"}, 500, "internal"),
    ],
)
def test_classify_errors(
    gateway: GatewayApp, call: Call, counted_requests: Counted, body: object, status: int, code: str
) -> None:
    response = call(gateway, "POST", "/classify", json=body)
    assert response.status_code == status
    assert set(response.json()) == {"error", "code"}
    assert response.json()["code"] == code
    assert [outcome for _, _, outcome in counted_requests] == [code]


def test_models_without_a_host_are_explained(gateway: GatewayApp, call: Call) -> None:
    unknown = call(gateway, "POST", "/v2/models/nope/infer", json={})
    assert unknown.status_code == 404
    assert unknown.json()["error"] == "no model named 'nope' is served here; there are: cifar, slow, sst2"
    loading = call(gateway, "GET", "/v2/models/slow/ready")
    assert loading.status_code == 503
    assert "reading weights" in loading.json()["error"]
    lost = call(gateway, "GET", "/v2/models/sst2/ready")
    assert (lost.status_code, lost.json()["error"]) == (
        503,
        "sst2 is not ready: no host answers for it; try again soon",
    )


def test_other_paths_and_methods(gateway: GatewayApp, call: Call) -> None:
    missing = call(gateway, "GET", "/v3/models")
    assert (missing.status_code, missing.json()["code"]) == (404, "not_found")
    wrong = call(gateway, "GET", "/classify")
    assert (wrong.status_code, wrong.headers["allow"]) == (405, "POST")
    assert call(gateway, "GET", "/" + "x" * 5000).status_code == 404
    assert len(call(gateway, "GET", "/" + "x" * 5000).json()["error"]) == 1000


def test_the_home_page_is_html_or_json(gateway: GatewayApp, call: Call) -> None:
    browser = {"Accept": "text/html,application/xhtml+xml,application/json;q=0.9,*/*;q=0.8"}
    assert call(gateway, "GET", "/", headers=browser).headers["content-type"].startswith("text/html")
    assert (
        call(gateway, "GET", "/", headers={"Accept": "*/*"}).headers["content-type"].startswith("text/html")
    )
    answer = call(gateway, "GET", "/", headers={"Accept": "application/json"}).json()
    assert (answer["name"], answer["version"]) == ("fewshard", __version__)
    assert [(model["name"], model["kind"], model["task"]) for model in answer["models"]] == [
        ("sst2", "moe", "text"),
        ("cifar", "moe", "image"),
        ("slow", None, None),
    ]


class Tags(HTMLParser):
    """Opens and closes of a page, and every address in it."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: set[str] = set()
        self.addresses: list[str] = []
        self.text = ""
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.add(tag)
        self.addresses += [value for name, value in attrs if name in ("href", "src") and value]
        if tag not in ("meta", "link", "br", "img", "input"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def test_the_console_is_well_formed_and_fetches_nothing(gateway: GatewayApp, call: Call) -> None:
    response = call(gateway, "GET", "/")
    assert response.status_code == 200
    page = Tags(response.text)
    assert page.open == []
    assert not any(re.match(r"/|(?!data:)\w+:", address) for address in page.addresses), "all are relative"
    assert not re.search(r"@import|url\(", response.text)
    assert "default-src 'none'" in response.headers["content-security-policy"]


def test_every_file_of_the_console_is_served_under_its_policy(gateway: GatewayApp, call: Call) -> None:
    page = Tags(call(gateway, "GET", "/").text)
    own = [address for address in page.addresses if address.startswith("console/")]
    assert len(own) >= 4
    kinds = {"css": "text/css", "js": "text/javascript", "svg": "image/svg+xml"}
    served = {f"/console/{name}" for name in console_files() if name != PAGE}
    assert {f"/{address}" for address in own} <= served
    for path in served:
        response = call(gateway, "GET", path)
        assert response.status_code == 200
        assert response.headers["content-type"].startswith(kinds[path.rpartition(".")[2]])
        policy = response.headers["content-security-policy"]
        assert "default-src 'none'" in policy
        assert "unsafe" not in policy
    assert call(gateway, "POST", "/console/app.js").status_code == 405
    assert call(gateway, "GET", "/console/../pyproject.toml").status_code == 404
    assert call(gateway, "GET", "/console/none.js").status_code == 404


def test_the_console_fetches_from_nowhere_else() -> None:
    files = console_files().values()
    assert sum(len(file.body) for file in files) < 300_000
    for file in files:
        text = file.body.decode()
        assert not re.search(r"[\"'`]/(v2|console|docs|metrics|openapi)\b", text), "all are relative"
        addresses = set(re.findall(r"https?://[^\s\"']+", text))
        assert addresses <= {"http://www.w3.org/2000/svg"}
        assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|eval\(|document\.write", text)


def test_the_openapi_document_is_whole(gateway: GatewayApp, call: Call) -> None:
    document = call(gateway, "GET", "/openapi.json").json()
    assert document == openapi_document(Limits(200_000, 64, 10_000))
    assert document["openapi"] == "3.1.0"
    schemas = document["components"]["schemas"]
    for reference in re.findall(r"#/components/schemas/(\w+)", str(document)):
        assert reference in schemas
    operations = [operation for path in document["paths"].values() for operation in path.values()]
    assert len({operation["operationId"] for operation in operations}) == len(operations) == len(DOCUMENTED)
    for operation in operations:
        described = {int(status) for status in operation["responses"]}
        assert described - {200} <= set(HTTP_STATUS.values())


def test_examples_in_the_document_are_valid() -> None:
    examples = {route.path: route.example for route in DOCUMENTED}
    GatewayClassifyRequest.model_validate(examples["/classify"])
    InferRequestBody.model_validate(examples["/v2/models/{model}/infer"])
    answers = [(route.gives, route.answer) for route in DOCUMENTED if route.answer is not None]
    assert len(answers) == 7
    for kind, answer in answers:
        assert kind is not None
        kind.model_validate(answer)


OF_NOTHING_HERE = {
    "/v2/tokens/reload",
    "/v2/models/{model}/experts",
    "/v2/models/{model}/placement",
    "/classify",
}
"""What is asked of a model without experts, without shards, or of another name."""


def test_every_documented_path_is_served(gateway: GatewayApp, host: HostApp, call: Call) -> None:
    for route in DOCUMENTED:
        app = host if route.path.startswith("/v2/models") else gateway
        example = json.loads(json.dumps(route.example).replace("{model}", "sst2"))
        body = {"json": example} if route.method == "POST" else {}
        query = "?model=sst2" if route.path == "/info" else ""
        response = call(app, route.method, route.path.format(model="sst2") + query, **body)
        expected = {200} | ({404} if route.path in OF_NOTHING_HERE else set())
        if route.path.endswith(("/rerank", "/score")):
            expected = {400}  # of a model with two labels
        assert response.status_code in expected | ({503} if 503 in route.errors else set())
        assert response.headers["content-type"].startswith(route.content_type)
