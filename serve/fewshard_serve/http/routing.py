"""`Route` describes one endpoint of the HTTP API, and `Router` finds the route of a request.

`routes` lists all endpoints, and `asgi` calls the router.
"""

from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

from pydantic import BaseModel

from fewshard_serve.errors import MethodNotAllowed, ServeError
from fewshard_serve.http.request import MODELS, Request
from fewshard_serve.http.responses import Response, error_response
from fewshard_serve.protocol.schemas import ErrorBody

MODEL = f"{MODELS}/{{model}}"
VERSION = "/versions/{version}"
"""An optional part after the model's name in every path of a model."""

Scope = Literal["open", "any", "predict", "admin"]
"""What a caller needs: no token ("open"), a token with any scope ("any"), or a token with this scope."""

Handler = Callable[[Any, Request], Awaitable[Response]]
"""Answers a request, given a `HostContext` or `GatewayContext`, or raises a `ServeError`."""

READING = frozenset({"GET", "OPTIONS"})


@dataclass(frozen=True, slots=True)
class HeaderProtocol:
    """A metric label that depends on whether the request has a header.

    header: its name in lower case.
    present, absent: the label of requests with and without the header.
    """

    header: str
    present: str
    absent: str

    def __call__(self, request: Request) -> str:
        return self.present if self.header.encode() in request.headers else self.absent


@dataclass(frozen=True, slots=True)
class Route:
    """One endpoint. A route with a `protocol` serves predictions, and metrics count its requests.

    method: in capitals; a GET route also answers HEAD.
    path: a template, in which `{name}` matches one segment.
    handler: answers the request.
    scope: the scope that the caller needs, or a function of the request that returns it.
    protocol: the metric label of its requests; None if they are not counted.
    encode_error: builds the response of an error.
    is_sheddable: HAProxy may refuse the request if the model is at its admission limit.
    answer_within_s: HAProxy's timeout for the answer in seconds; None for the default.

    The other fields are for the OpenAPI document:

    summary: one line; an endpoint without a summary is left out.
    takes, gives, refuses: the schemas of request, answer and error.
    takes_image: the body may also be an image file.
    example, answer: an example request and its answer.
    errors: statuses in addition to 500 and those of the scope; ignored for predictions.
    content_type: the content type of the answer.
    """

    method: str
    path: str
    handler: Handler
    scope: Scope | Callable[[Request], Scope] = "any"
    protocol: str | HeaderProtocol | None = None
    encode_error: Callable[[ServeError], Response] = error_response
    is_sheddable: bool = False
    answer_within_s: float | None = None
    summary: str = ""
    takes: type[BaseModel] | None = None
    gives: type[BaseModel] | None = None
    refuses: type[BaseModel] = ErrorBody
    takes_image: bool = False
    example: dict[str, Any] | None = None
    answer: dict[str, Any] | None = None
    errors: tuple[int, ...] = ()
    content_type: str = "application/json"

    @property
    def is_of_model(self) -> bool:
        """Whether replicas answer it, rather than the gateway."""
        return self.path.startswith(f"{MODELS}/")

    def scope_of(self, request: Request) -> Scope:
        scope = self.scope
        return scope if isinstance(scope, str) else scope(request)

    def protocol_of(self, request: Request) -> str | None:
        protocol = self.protocol
        return protocol if protocol is None or isinstance(protocol, str) else protocol(request)


class Match(NamedTuple):
    """The route of a request, and the values of the parameters in its path."""

    route: Route
    parameters: Mapping[str, str]


def model_in(path: str) -> str:
    """The segment of a path below `MODELS` that should be a model's name."""
    return path.removeprefix(f"{MODELS}/").partition("/")[0]


class _Path(NamedTuple):
    """The routes of one path, by method.

    refuses_reading, refuses_writing: answer the methods that the path does not have.
    """

    parameters: tuple[str, ...]
    routes: dict[str, Route]
    refuses_reading: Route
    refuses_writing: Route

    def route(self, method: str) -> Route:
        found = self.routes.get(method)
        if found is not None:
            return found
        return self.refuses_reading if method in READING else self.refuses_writing


@dataclass(slots=True)
class _Node:
    """One node of the tree of path segments.

    literals: the children for fixed segments.
    parameter: the child for a `{name}` segment.
    path: the path that ends here, if any.
    """

    literals: "dict[str, _Node]" = field(default_factory=dict)
    parameter: "_Node | None" = None
    path: _Path | None = None


class Router:
    """Finds the route of a request by its path, segment by segment.

    `missing` answers unknown paths. A writing method that a path does not have needs the scope `admin`,
    unless the path's own routes need less. Raises `ValueError` if two routes would match the same request.
    """

    def __init__(self, routes: Iterable[Route], missing: Handler) -> None:
        self._whole: dict[str, _Path] = {}
        self._tree = _Node()
        self._missing = _path("", {}, missing)
        by_path: dict[str, dict[str, Route]] = {}
        for route in routes:
            for path in _paths(route):
                if by_path.setdefault(path, {}).setdefault(route.method, route) is not route:
                    raise ValueError(f"{route.method} {path} has two routes; keep one")
        for path, by_method in by_path.items():
            self._add(path, _path(path, by_method))

    def match(self, method: str, path: str) -> Match:
        """The route of a request, which may be one that refuses. A trailing slash is ignored."""
        found = self._whole.get(path)
        if found is not None:
            return Match(found.route(method), {})
        found, values = self._walk(path.rstrip("/") or "/")
        return Match(found.route(method), dict(zip(found.parameters, values, strict=True)))

    def _walk(self, path: str) -> tuple[_Path, list[str]]:
        found = self._whole.get(path)
        if found is not None:
            return found, []
        node, values = self._tree, []
        for part in path.split("/"):
            child = node.literals.get(part)
            if child is None:
                child = node.parameter
                if child is None or not part:
                    return self._missing, []
                values.append(part)
            node = child
        return (self._missing, []) if node.path is None else (node.path, values)

    def _add(self, path: str, its: _Path) -> None:
        if not its.parameters:
            self._whole[path] = its
            return
        node = self._tree
        for part in path.split("/"):
            is_parameter = part.startswith("{")
            _check(path, not (node.literals if is_parameter else node.parameter))
            if is_parameter:
                node.parameter = node.parameter or _Node()
                node = node.parameter
            else:
                node = node.literals.setdefault(part, _Node())
        _check(path, node.path is None)
        node.path = its


def _check(path: str, is_alone: bool) -> None:
    if not is_alone:
        raise ValueError(f"{path} and another path could be taken for each other; rename one")


def _path(path: str, by_method: dict[str, Route], missing: Handler | None = None) -> _Path:
    scopes = {method: route.scope for method, route in by_method.items()}
    reading: Scope = "open" if "open" in scopes.values() else "any"
    # The scope "any" of a POST route shows that it only reads.
    writing: Scope = reading if reading == "open" or scopes.get("POST") == "any" else "admin"
    handler = missing or _refusing(", ".join(sorted({*by_method, *(["HEAD"] if "GET" in by_method else [])})))
    parameters = tuple(part[1:-1] for part in path.split("/") if part.startswith("{"))
    return _Path(
        parameters, by_method, Route("GET", path, handler, reading), Route("POST", path, handler, writing)
    )


def _refusing(allowed: str) -> Handler:
    async def refuse(_: Any, request: Request) -> Response:
        raise MethodNotAllowed(f"{request.path} does not take {request.method}; use {allowed}", allowed)

    return refuse


def _paths(route: Route) -> Iterator[str]:
    """The route's path and, for a path of a model, the same path with a version."""
    yield route.path
    if route.path.startswith(MODEL):
        yield f"{MODEL}{VERSION}{route.path.removeprefix(MODEL)}"
