"""How a request finds its route, and what answers where there is none."""

import asyncio

import pytest

from fewshard_serve.errors import MethodNotAllowed
from fewshard_serve.http.request import Request
from fewshard_serve.http.responses import Response
from fewshard_serve.http.routing import HeaderProtocol, Route, Router, model_in


async def answer(_, request):
    return Response(request.path.encode())


async def missing(_, request):
    return Response(b"missing")


def router(*paths, method="GET", **more):
    return Router([Route(method, path, answer, **more) for path in paths], missing)


def asked(method, path, headers=()):
    return Request({"type": "http", "method": method, "path": path, "headers": list(headers)}, None)


MODEL_PATHS = (
    "/v2/models/{model}",
    "/v2/models/{model}/ready",
    "/v2/models/{model}/infer",
    "/v2/models/stats",
)


@pytest.mark.parametrize(
    ("path", "template", "parameters"),
    [
        ("/v2/models/m", "/v2/models/{model}", {"model": "m"}),
        ("/v2/models/m/", "/v2/models/{model}", {"model": "m"}),
        ("/v2/models/m/infer", "/v2/models/{model}/infer", {"model": "m"}),
        ("/v2/models/m/versions/1", "/v2/models/{model}", {"model": "m", "version": "1"}),
        ("/v2/models/m/versions/1/ready", "/v2/models/{model}/ready", {"model": "m", "version": "1"}),
        (
            "/v2/models/versions/versions/2/infer",
            "/v2/models/{model}/infer",
            {"model": "versions", "version": "2"},
        ),
        ("/v2/models/{model}/{}/", "", {}),
        ("/v2/models/{model}", "/v2/models/{model}", {"model": "{model}"}),
        ("/v2/models/stats", "/v2/models/stats", {}),
        ("/v2/models/stats/", "/v2/models/stats", {}),
        ("/v2/models/stats/infer", "/v2/models/{model}/infer", {"model": "stats"}),
    ],
)
def test_paths_are_matched(path, template, parameters):
    route, found = router(*MODEL_PATHS).match("GET", path)
    assert (route.path.removesuffix("/versions/{version}"), found) == (template, parameters)


@pytest.mark.parametrize(
    "path",
    [
        *("/", "", "//", "/v2", "/v2/models", "/v2/models/", "/v2/models//infer", "/v2/models/m/a", "/v2//m"),
        *("/v2/models/m/infer/b", "/v2/models/m/versions/1/a/b", "/v2/models/m/versions", "v2/models/m"),
    ],
)
def test_other_paths_are_missing(path):
    route, parameters = router(*MODEL_PATHS).match("GET", path)
    assert (route.handler, parameters) == (missing, {})


def test_the_root_is_a_path():
    assert router("/").match("GET", "/").route.handler is answer
    assert router("/").match("GET", "").route.handler is answer


@pytest.mark.parametrize(
    ("routes", "method", "allowed"),
    [
        ([("GET", "any")], "POST", "GET, HEAD"),
        ([("POST", "any")], "GET", "POST"),
        ([("POST", "any"), ("GET", "any")], "BREW", "GET, HEAD, POST"),
    ],
)
def test_another_method_is_refused_by_name(routes, method, allowed):
    of = Router([Route(each, "/a", answer, scope) for each, scope in routes], missing)
    request = asked(method, "/a")
    with pytest.raises(MethodNotAllowed, match=f"/a does not take {method}; use {allowed}") as refused:
        asyncio.run(of.match(method, "/a").route.handler(None, request))
    assert refused.value.allowed == allowed


def test_what_is_not_listed_and_writes_is_for_admins():
    listed = [
        Route("GET", "/a", answer),
        Route("POST", "/free", answer),
        Route("GET", "/open", answer, "open"),
    ]
    of = Router(listed, missing)
    scopes = {
        (path, method): of.match(method, path).route.scope
        for path in ("/a", "/free", "/open", "/nowhere")
        for method in ("OPTIONS", "PUT")
    }
    assert scopes == {
        ("/a", "OPTIONS"): "any",
        ("/a", "PUT"): "admin",
        ("/free", "OPTIONS"): "any",
        ("/free", "PUT"): "any",
        ("/open", "OPTIONS"): "open",
        ("/open", "PUT"): "open",
        ("/nowhere", "OPTIONS"): "any",
        ("/nowhere", "PUT"): "admin",
    }


@pytest.mark.parametrize(
    "paths",
    [
        ("/a/{one}", "/a/b/{one}"),
        ("/a/b/{one}", "/a/{one}/c"),
        ("/a", "/a"),
        ("/v2/models/{model}/x", "/v2/models/{name}/x"),
    ],
)
def test_two_routes_for_one_request_are_refused(paths):
    with pytest.raises(ValueError, match=r"(rename|keep) one"):
        router(*paths)


def test_a_label_may_depend_on_a_header():
    route = Route("POST", "/a", answer, protocol=HeaderProtocol("x-b", present="with", absent="without"))
    assert route.protocol_of(asked("POST", "/a", [(b"x-b", b"")])) == "with"
    assert route.protocol_of(asked("POST", "/a")) == "without"
    assert Route("POST", "/a", answer).protocol_of(asked("POST", "/a")) is None


@pytest.mark.parametrize(
    ("path", "model"), [("/v2/models/m", "m"), ("/v2/models/m/a/b", "m"), ("/v2/models/", "")]
)
def test_the_model_in_a_path(path, model):
    assert model_in(path) == model
