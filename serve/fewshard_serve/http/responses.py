"""Responses: bodies, headers, and the HTTP status of each error. Handlers build them, `asgi` sends them."""

import math
from dataclasses import dataclass
from typing import Any

from pydantic_core import to_json

from fewshard_serve import errors
from fewshard_serve.errors import (
    InternalError,
    MethodNotAllowed,
    NotReady,
    Overloaded,
    ServeError,
    Unauthorized,
)
from fewshard_serve.protocol import tei, vllm

HTTP_STATUS: dict[type[ServeError], int] = {
    errors.MalformedRequest: 400,
    errors.Unauthorized: 401,
    errors.Forbidden: 403,
    errors.UnknownModel: 404,
    errors.NotFound: 404,
    errors.MethodNotAllowed: 405,
    errors.DeadlineExceeded: 408,
    errors.ChangeRefused: 409,
    errors.TooLarge: 413,
    errors.UnsupportedMedia: 415,
    errors.UnusableItem: 422,
    errors.Overloaded: 429,
    errors.CallerGone: 499,
    errors.InternalError: 500,
    errors.NotReady: 503,
}
"""Errors of the command line are not listed. One of them in a request is a bug, so its status is 500."""


def status_of(error: ServeError) -> int:
    """The status of the error's class, or of its nearest base class that has one; else 500."""
    return next((HTTP_STATUS[kind] for kind in type(error).__mro__ if kind in HTTP_STATUS), 500)


JSON = b"application/json"
OCTETS = b"application/octet-stream"
PROMETHEUS = b"text/plain; version=0.0.4; charset=utf-8"
OPEN_METRICS = b"application/openmetrics-text; version=1.0.0; charset=utf-8"
OPEN_METRICS_END = b"# EOF\n"

MAX_MESSAGE = 1000
"""Characters of an error message. Some messages repeat the caller's data, which may be long."""

NOT_READY_RETRY_AFTER_S = 1
"""Another replica may be ready already; a new one takes seconds to start."""

Headers = tuple[tuple[bytes, bytes], ...]


@dataclass(frozen=True, slots=True)
class Response:
    """A complete answer. Content-Length, Content-Encoding and Vary are added when it is sent."""

    body: bytes
    content_type: bytes = JSON
    status: int = 200
    headers: Headers = ()


def json_response(value: Any) -> Response:
    """A 200 response with a JSON value. NaN and infinity become null."""
    return Response(to_json(value, inf_nan_mode="null"))


def metrics_response(text: bytes, is_open_metrics: bool) -> Response:
    """A response with metrics in the requested format. OpenMetrics needs an end marker."""
    if is_open_metrics:
        return Response(text + OPEN_METRICS_END, OPEN_METRICS)
    return Response(text, PROMETHEUS)


def error_response(error: ServeError, **details: Any) -> Response:
    """A response `{"error", "code"}` plus `details`, with the status of the error's class."""
    body = to_json({"error": message_of(error), "code": error.code, **details})
    return Response(body, JSON, status_of(error), _error_headers(error))


def tei_error_response(error: ServeError) -> Response:
    """An error response with the `error_type` that clients of text-embeddings-inference expect."""
    return error_response(error, error_type=tei.error_type(error))


def vllm_error_response(error: ServeError) -> Response:
    """An error response in vLLM's format."""
    status = status_of(error)
    body = vllm.error_body(message_of(error), error.code, status)
    return Response(body, JSON, status, _error_headers(error))


def unforeseen() -> InternalError:
    """The error for an unexpected exception. The traceback is in the log, not in the response."""
    return InternalError("the server failed; its log has the reason")


def message_of(error: ServeError) -> str:
    """The error's message, shortened to `MAX_MESSAGE` characters."""
    message = str(error)
    return message if len(message) <= MAX_MESSAGE else f"{message[: MAX_MESSAGE - 1]}…"


def retry_after(seconds: float) -> int:
    """The value of a Retry-After header: whole seconds, at least one."""
    return max(1, math.ceil(seconds))


def _error_headers(error: ServeError) -> Headers:
    if isinstance(error, MethodNotAllowed):
        return ((b"allow", error.allowed.encode()),)
    if isinstance(error, Overloaded):
        return ((b"retry-after", b"%d" % retry_after(error.retry_after_s)),)
    if isinstance(error, NotReady):
        return ((b"retry-after", b"%d" % NOT_READY_RETRY_AFTER_S),)
    if isinstance(error, Unauthorized):
        return ((b"www-authenticate", b"Bearer"),)
    return ()
