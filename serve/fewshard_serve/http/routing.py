"""What one endpoint of the HTTP API is, and how a request finds its own. `routes` lists them all."""

from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

from pydantic import BaseModel

from fewshard_serve.errors import MethodNotAllowed, ServeError
from fewshard_serve.http.request import Request
from fewshard_serve.http.responses import Response, error_response
from fewshard_serve.protocol.schemas import ErrorBody

MODELS = "/v2/models"
"""What lies below belongs to the hosts, everything else to the gateway."""
MODEL = f"{MODELS}/{{model}}"
VERSION = "/versions/{version}"
"""May follow the model's name in every path of a model."""

Scope = Literal["open", "any", "predict", "admin"]
"""What a caller needs: nothing; a token, of whatever scope; or a token with this scope."""

Handler = Callable[[Any, Request], Awaitable[Response]]
"""Answers a request, given the `Host` or `Gateway` behind it, or raises a `ServeError`."""

READING = frozenset({"GET", "OPTIONS"})


@dataclass(frozen=True, slots=True)
class HeaderProtocol:
    """A metric label that depends on whether the request has a header. `header` is in lower case."""

    header: str
    present: str
    absent: str

    def __call__(self, request: Request) -> str:
        return self.present if self.header.encode() in request.headers else self.absent


@dataclass(frozen=True, slots=True)
class Route:
    """One endpoint. A route with a `protocol` asks for a prediction: metrics count each of its requests.

    method: in capitals; a GET is also a HEAD.
    path: a template; `{name}` stands for one segment.
    handler: what answers.
    scope: what the caller needs; a function where it depends on the request.
    protocol: the metric label of its requests; None where they are not counted.
    encode_error: how an error is worded for its clients.
    is_sheddable: HAProxy may refuse it where the model has no room.
    answer_within_s: HAProxy waits so long for the answer; None for the server's usual time.

    The rest is for the OpenAPI document:

    summary: one line; an endpoint without one is left out.
    takes, gives, refuses: the JSON of a request, of an answer, and of an error.
    takes_image: the body may be an image file instead.
    example, answer: a request and an answer as they may look.
    errors: statuses beside 500 and what the scope brings; a prediction has those of predictions.
    content_type: of the answer.
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
        """Whether hosts answer it."""
        return self.path.startswith(f"{MODELS}/")

    def scope_of(self, request: Request) -> Scope:
        scope = self.scope
        return scope if isinstance(scope, str) else scope(request)

    def protocol_of(self, request: Request) -> str | None:
        protocol = self.protocol
        return protocol if protocol is None or isinstance(protocol, str) else protocol(request)


class Match(NamedTuple):
    """The route of a request, and the parts of its path that stand for `{name}`."""

    route: Route
    parameters: Mapping[str, str]


def model_in(path: str) -> str:
    """The name of a model in a path below `MODELS`, or what stands in its place."""
    return path.removeprefix(f"{MODELS}/").partition("/")[0]


class _Path(NamedTuple):
    """The routes of one path. `refuses_reading` and `refuses_writing` answer the methods it does not have."""

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
    """One segment of the templates: what may follow it, and the path that ends here, if one does."""

    literals: "dict[str, _Node]" = field(default_factory=dict)
    parameter: "_Node | None" = None
    path: _Path | None = None


class Router:
    """Finds the route of a request by looking its path up, one segment after another.

    `missing` answers where there is no such path. What writes needs the scope `admin` unless a route says
    otherwise. Raises `ValueError` where two routes would fit one request.
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
        """Always a route, which may be one that refuses. A slash at the end of a path means nothing."""
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
    # A POST that only reads says so by its scope.
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
    """The template, and for one of a model the same with a version."""
    yield route.path
    if route.path.startswith(MODEL):
        yield f"{MODEL}{VERSION}{route.path.removeprefix(MODEL)}"
