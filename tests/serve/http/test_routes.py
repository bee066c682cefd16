"""The list of endpoints and what comes of it, held against what eight separate tables once said.

`openapi_before.json` is the document of that time. Change it, and the tables here, on purpose only.
"""

import json
from pathlib import Path

import pytest
from pydantic import BaseModel
from pydantic_core import to_json

from fewshard_serve.auth import hash_of
from fewshard_serve.config import ModelConfig
from fewshard_serve.http.gateway import GatewayApp
from fewshard_serve.http.host import HostApp
from fewshard_serve.http.middleware import AccessMiddleware, AccessSettings
from fewshard_serve.http.openapi import openapi_document
from fewshard_serve.http.request import Request
from fewshard_serve.http.responses import json_response
from fewshard_serve.http.routes import ROUTES, reserved_names, sheddable_requests
from fewshard_serve.http.routing import MODEL, Route, Router
from fewshard_serve.http.versions import find_host_model
from fewshard_serve.protocol.limits import Limits
from fewshard_serve.rayserve.haproxy_rules import FrontSettings, rules
from local_service import LocalService

BEFORE = json.loads(Path(__file__).with_name("openapi_before.json").read_bytes())

PATHS = [
    # path; scopes of GET and HEAD, of OPTIONS, of POST, of any other method; metric label of a POST
    ("/v2/models/m/classify", "any any predict admin", "classify"),
    ("/classify", "any any predict admin", "classify"),
    ("/predict", "any any predict admin", "tei"),
    ("/v2/models/m/predict", "any any predict admin", "tei"),
    ("/v1/classify", "any any predict admin", "vllm"),
    ("/v2/models/m/infer", "any any predict admin", "v2_json"),
    ("/v2/models/m/explain", "any any predict admin", "explain"),
    ("/v2/models/m/rerank", "any any predict admin", "rerank"),
    ("/rerank", "any any predict admin", "rerank"),
    ("/v1/rerank", "any any predict admin", "rerank"),
    ("/v2/rerank", "any any predict admin", "rerank"),
    ("/v2/models/m/score", "any any predict admin", "rerank"),
    ("/score", "any any predict admin", "rerank"),
    ("/v1/score", "any any predict admin", "rerank"),
    ("/v2/models/m", "any any predict admin", "tei"),
    ("/v2/models/m/ready", "any any admin admin", None),
    ("/v2/models/m/config", "any any admin admin", None),
    ("/v2/models/m/stats", "any any admin admin", None),
    ("/v2/models/stats", "any any admin admin", None),
    ("/v2/models/m/experts", "any any admin admin", None),
    ("/v2/models/m/placement", "any any admin admin", None),
    ("/v2/models/m/metrics", "any any admin admin", None),
    ("/v2/models/metrics", "any any admin admin", None),
    ("/v2", "any any admin admin", None),
    ("/v2/health/live", "open open open open", None),
    ("/v2/health/ready", "open open open open", None),
    ("/v2/repository/index", "any any any any", None),
    ("/v2/repository/models/m/load", "any any admin admin", None),
    ("/v2/repository/models/m/unload", "any any admin admin", None),
    ("/metrics", "any any admin admin", None),
    ("/metrics/gateway", "any any admin admin", None),
    ("/metrics/targets", "any any admin admin", None),
    ("/v2/tokens/reload", "any any admin admin", None),
    ("/", "open any predict admin", "tei"),
    ("/invocations", "any any predict admin", "tei"),
    ("/ping", "open open open open", None),
    ("/health", "open open open open", None),
    ("/version", "any any admin admin", None),
    ("/info", "any any admin admin", None),
    ("/v1/models", "any any admin admin", None),
    ("/v1/models/m", "any any admin admin", None),
    ("/docs", "open open open open", None),
    ("/openapi.json", "open open open open", None),
    ("/console/app.js", "open open open open", None),
]
RESERVED = {
    *("versions", "ready", "infer", "classify", "predict", "stats", "config", "experts", "explain"),
    *("placement", "metrics", "index", "rerank", "score"),
}
SHEDDABLE = [
    ("classify", "/classify", None),
    ("tei", "/predict", None),
    ("tei", "", None),
    ("v2_json", "/infer", ("inference-header-content-length", False)),
    ("v2_binary", "/infer", ("inference-header-content-length", True)),
    ("explain", "/explain", None),
    ("rerank", "/rerank", None),
    ("rerank", "/score", None),
]


def at(ends):
    """How HAProxy knows the paths of a model that end so."""
    return f"{{ var(txn.path) -m reg ^/v2/models/[^/]+(/versions/[^/]+)?({ends})/*$ }}"


RULES = [
    "stick-table type string len 256 size 20k expire 1m store conn_cur,gpc(9),gpt(2)",
    "http-request set-var(txn.predicts) bool(true) if METH_POST "
    f"{at('/classify|/predict||/infer|/explain|/rerank|/score')}",
    f"http-request set-var(txn.within) int(120000) if !predicts {at('/placement')}",
    "http-request set-var(txn.within) int(1000000) if !predicts "
    "{ var(txn.path) -m reg ^/v2/repository/models/[^/]+/load/*$ }",
    "http-request set-var(txn.within) int(1000000) if !predicts "
    "{ var(txn.path) -m reg ^/v2/repository/models/[^/]+/unload/*$ }",
    f"http-request sc-inc-gpc(0,0) if is_refused {at('/classify')}",
    f"http-request sc-inc-gpc(1,0) if is_refused {at('/predict')}",
    f"http-request sc-inc-gpc(2,0) if is_refused {at('')}",
    f"http-request sc-inc-gpc(3,0) if is_refused {at('/infer')} "
    "!{ req.hdr(inference-header-content-length) -m found }",
    f"http-request sc-inc-gpc(4,0) if is_refused {at('/infer')} "
    "{ req.hdr(inference-header-content-length) -m found }",
    f"http-request sc-inc-gpc(5,0) if is_refused {at('/explain')}",
    f"http-request sc-inc-gpc(6,0) if is_refused {at('/rerank')}",
    f"http-request sc-inc-gpc(7,0) if is_refused {at('/score')}",
    "http-request sc-inc-gpc(8,0) if is_refused",
]
"""The lines of HAProxy's rules that depend on the routes."""


@pytest.fixture(scope="module")
def router():
    return Router(ROUTES, missing)


async def missing(_, request):
    raise AssertionError(request.path)


def of_request(router, method, path, headers=()):
    """Scope and metric label."""
    request = Request({"type": "http", "method": method, "path": path, "headers": list(headers)}, None)
    route, _ = router.match(request.method, path)
    return route.scope_of(request), route.protocol_of(request)


def test_the_document_is_the_one_of_before():
    document = openapi_document(Limits())
    assert document == BEFORE
    assert to_json(document) == to_json(BEFORE), "in the same order, too"


@pytest.mark.parametrize("version", ["", "/versions/1"])
@pytest.mark.parametrize(("path", "scopes", "label"), PATHS)
def test_scopes_and_labels_are_those_of_before(router, path, scopes, label, version):
    path = path.replace("/v2/models/m", f"/v2/models/m{version}") if path != "/v2/models/metrics" else path
    reading, options, post, others = scopes.split()
    expected = {
        **dict.fromkeys(("GET", "HEAD"), (reading, None)),
        "OPTIONS": (options, None),
        "POST": (post, label),
        **dict.fromkeys(("PUT", "PATCH", "DELETE"), (others, None)),
    }
    for at in (path, f"{path}/"):
        assert {method: of_request(router, method, at) for method in expected} == expected


def test_the_table_has_every_path():
    known = {path.replace("/m/", "/{model}/").replace("app.js", "{file}") for path, _, _ in PATHS}
    known = {path.removesuffix("/m") + "/{model}" if path.endswith("/m") else path for path in known}
    assert {route.path for route in ROUTES} == {*known, "/docs/{file}"}, "/docs/{file} is new"


def test_binary_requests_have_a_label_of_their_own(router):
    header = (b"inference-header-content-length", b"7")
    assert of_request(router, "POST", "/v2/models/m/infer", [header]) == ("predict", "v2_binary")
    assert of_request(router, "POST", "/v2/models/m/classify", [header]) == ("predict", "classify")


@pytest.mark.parametrize(
    ("accept", "scope"),
    [("application/json", "any"), ("text/html,application/json;q=0.9", "open"), ("*/*", "open")],
)
def test_the_home_page_is_open_and_the_list_of_models_is_not(router, accept, scope):
    assert of_request(router, "GET", "/", [(b"accept", accept.encode())]) == (scope, None)


def test_reserved_names_are_those_of_before():
    assert reserved_names() == RESERVED


def test_haproxy_refuses_and_counts_every_prediction_of_a_model():
    found = [
        (one.protocol, one.route.path.removeprefix(MODEL), one.header and (one.header, one.has_header))
        for one in sheddable_requests()
    ]
    assert found == SHEDDABLE
    lines = rules(ROUTES, "", FrontSettings()).splitlines()
    of_routes = ("stick-table", "inc-gpc", "within) int(", "bool(true) if METH_POST")
    assert [line for line in lines if any(word in line for word in of_routes)] == RULES


class Echo(BaseModel):
    """The answer of the toy."""

    echoed: str


async def echo(host, request):
    return json_response({"echoed": find_host_model(host, request).info.name})


TOY = Route(
    "POST",
    f"{MODEL}/echo",
    echo,
    scope="predict",
    protocol="toy",
    is_sheddable=True,
    summary="Say the model's name",
    gives=Echo,
    example={},
)
WITH_TOY = (*ROUTES, TOY)


@pytest.fixture
def doors(tmp_path):
    path = tmp_path / "tokens.yaml"
    tokens = [("reader", ""), ("app", "predict")]
    lines = [
        f"  - {{name: {name}, sha256: {hash_of(name).hex()}, scopes: [{what}]}}" for name, what in tokens
    ]
    path.write_text("\n".join(["tokens:", *lines]))
    return AccessMiddleware(AccessSettings(tokens_file=str(path)))


def test_one_route_is_all_that_an_endpoint_takes(doors, text_model, gateway, counted_requests, call):
    def count(*told):
        counted_requests.append(told[:3])

    service = LocalService({"sst2": text_model})
    host = HostApp(service, doors=doors, on_request=count, routes=WITH_TOY)
    path = "/v2/models/sst2/echo"
    tokens = [{}, *({"Authorization": f"Bearer {token}"} for token in ("reader", "app"))]
    answers = [call(host, "POST", path, headers=headers) for headers in tokens]
    assert [answer.status_code for answer in answers] == [401, 403, 200]
    assert answers[2].json() == {"echoed": "sst2"}
    assert call(host, "POST", "/v2/models/sst2/versions/1/echo", headers=tokens[2]).status_code == 200
    assert call(host, "GET", path, headers=tokens[2]).headers["allow"] == "POST"
    assert [(label, outcome) for _, label, outcome in counted_requests] == [
        ("toy", "unauthorized"),
        ("toy", "forbidden"),
        ("toy", "ok"),
        ("toy", "ok"),
    ]
    documented = call(GatewayApp(gateway._service, routes=WITH_TOY), "GET", "/openapi.json").json()
    operation = documented["paths"]["/v2/models/{model}/echo"]["post"]
    assert operation["summary"] == "Say the model's name"
    assert set(operation["responses"]) > {"200", "401", "403", "429", "500"}
    assert documented["components"]["schemas"]["Echo"]["description"] == "The answer of the toy."
    assert reserved_names(WITH_TOY) == RESERVED | {"echo"}
    told = rules(WITH_TOY, "", FrontSettings())
    assert f"METH_POST {at('/classify|/predict||/infer|/explain|/rerank|/score|/echo')}" in told
    assert f"http-request sc-inc-gpc(8,0) if is_refused {at('/echo')}" in told


def test_no_model_may_have_a_reserved_name():
    for name in RESERVED:
        with pytest.raises(ValueError, match="part of the server's URLs"):
            ModelConfig.model_validate({"name": name, "path": "x"})
    assert ModelConfig.model_validate({"name": "echo", "path": "x"}).name == "echo"
