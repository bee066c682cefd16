"""One HTTP request as the handlers of both applications see it: a thin view on the ASGI scope."""

import time
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any
from urllib.parse import parse_qsl

from fewshard_serve.core import ANYBODY, Timings
from fewshard_serve.errors import DeadlineExceeded, MalformedRequest

Message = MutableMapping[str, Any]
Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]

TIMEOUT_HEADER = b"x-request-timeout-ms"
UNKNOWN_MODEL = "unknown"


class Request:
    """`model_name` stays "unknown" until a handler has found the model; metrics are labelled with it.

    `id` and `caller`, a token's holder or an address, are set at the doors; `trace_id` there at the end.
    `answer_headers` go with the answer, whatever it is. `is_body_abandoned` is set where the body is refused
    unread: the connection cannot be used again.
    """

    __slots__ = (
        "answer_headers",
        "answered_at",
        "caller",
        "headers",
        "id",
        "is_body_abandoned",
        "is_head",
        "method",
        "model_name",
        "path",
        "receive",
        "scope",
        "started_at",
        "timings",
        "trace_id",
    )

    def __init__(self, scope: Scope, receive: Receive) -> None:
        self.started_at = time.monotonic()
        self.scope = scope
        self.receive = receive
        self.is_head = scope["method"] == "HEAD"
        self.method: str = "GET" if self.is_head else scope["method"]
        self.path = full_path(scope)
        self.headers: dict[bytes, bytes] = dict(scope["headers"])
        self.model_name = UNKNOWN_MODEL
        self.answer_headers: tuple[tuple[bytes, bytes], ...] = ()
        self.is_body_abandoned = False
        self.id = ""
        self.caller = ANYBODY
        self.answered_at = 0.0
        self.timings: Timings | None = None
        self.trace_id = ""

    def note_answer(self, timings: Timings) -> None:
        """The model has answered now, after these stages; for traces."""
        self.answered_at, self.timings = time.monotonic(), timings

    def header(self, name: bytes) -> str | None:
        """A header's value by its lower-case name; the last where it was sent twice."""
        value = self.headers.get(name)
        return None if value is None else value.decode("latin-1")

    @property
    def media_type(self) -> str:
        """The content type without its parameters, in lower case; "" where there is none."""
        return (self.header(b"content-type") or "").partition(";")[0].strip().lower()

    @property
    def wants_open_metrics(self) -> bool:
        """Whether the client reads OpenMetrics, which alone can carry exemplars."""
        return "application/openmetrics-text" in (self.header(b"accept") or "")

    @property
    def query(self) -> dict[str, str]:
        try:
            return dict(parse_qsl(self.scope.get("query_string", b"").decode(), keep_blank_values=True))
        except ValueError as error:
            raise MalformedRequest(f"the query string cannot be read: {error}") from None

    @property
    def elapsed_s(self) -> float:
        return time.monotonic() - self.started_at

    def seconds_left(self, timeout_s: float | None = None) -> float | None:
        """What is left of the shorter of `timeout_s` and the header's time-out; None where neither is given.

        Raises `DeadlineExceeded` where nothing is left.
        """
        limits_s = [limit for limit in (timeout_s, self._header_timeout_s()) if limit is not None]
        if not limits_s:
            return None
        left_s = min(limits_s) - self.elapsed_s
        if left_s <= 0:
            raise DeadlineExceeded(f"the deadline of {min(limits_s):g} s passed while the request was read")
        return left_s

    def _header_timeout_s(self) -> float | None:
        value = self.header(TIMEOUT_HEADER)
        if value is None:
            return None
        if not (value.isascii() and value.isdigit() and len(value) < 16 and int(value)):
            raise MalformedRequest("X-Request-Timeout-Ms must be a whole number of milliseconds above 0")
        return int(value) / 1000


def full_path(scope: Scope) -> str:
    """The path from the server's root.

    ASGI says that `path` includes `root_path`; some servers and test clients leave it out.
    """
    path: str = scope["path"]
    root: str = scope.get("root_path", "").rstrip("/")
    return path if path == root or path.startswith(f"{root}/") else root + path
