"""One HTTP request, as a thin view on the ASGI scope, and functions that handlers of both applications use.

They move long work off the event loop, and stop work if the client disconnects.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Coroutine, Mapping, MutableMapping
from typing import Any, ParamSpec, TypeVar
from urllib.parse import parse_qsl

from fewshard_serve.core import ANYBODY, Timings
from fewshard_serve.errors import CallerGone, DeadlineExceeded, MalformedRequest
from fewshard_serve.http.large_bodies import LARGE_BYTES, BodyShare, LargeBodies
from fewshard_serve.tracecontext import TraceParent

Message = MutableMapping[str, Any]
Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]

MODELS = "/v2/models"
"""The replicas answer paths below this one, the gateway answers all others."""
TIMEOUT_HEADER = b"x-request-timeout-ms"
UNKNOWN_MODEL = "unknown"


class Request:
    """One request.

    parameters: the values of the parameters in its route's path.
    model_name: the label of metrics; "unknown" until a handler has found the model.
    id, caller: set by the middleware; the caller is a token's holder or an address.
    trace_parent: the client's span, set by the middleware; None if the client sent none.
    trace_id: set by the middleware after the answer; empty if the request is not traced.
    answer_headers: sent with every answer, including errors.
    is_body_abandoned: the body was not read to its end, so the connection cannot be reused.
    bodies: the large bodies of the process. `share` is what this request holds of them.
    """

    __slots__ = (
        "answer_headers",
        "answered_at",
        "bodies",
        "caller",
        "headers",
        "id",
        "is_body_abandoned",
        "is_head",
        "method",
        "model_name",
        "parameters",
        "path",
        "receive",
        "scope",
        "share",
        "started_at",
        "timings",
        "trace_id",
        "trace_parent",
    )

    def __init__(self, scope: Scope, receive: Receive, bodies: LargeBodies | None = None) -> None:
        self.started_at = time.monotonic()
        self.bodies = bodies or LargeBodies()
        self.share: BodyShare | None = None
        self.scope = scope
        self.receive = receive
        self.is_head = scope["method"] == "HEAD"
        self.method: str = "GET" if self.is_head else scope["method"]
        self.path = full_path(scope)
        self.headers: dict[bytes, bytes] = dict(scope["headers"])
        self.parameters: Mapping[str, str] = {}
        self.model_name = UNKNOWN_MODEL
        self.answer_headers: tuple[tuple[bytes, bytes], ...] = ()
        self.is_body_abandoned = False
        self.id = ""
        self.caller = ANYBODY
        self.answered_at = 0.0
        self.timings: Timings | None = None
        self.trace_id = ""
        self.trace_parent: TraceParent | None = None

    def note_answer(self, timings: Timings) -> None:
        """Record, for traces, that the model has answered, and the time of its stages."""
        self.answered_at, self.timings = time.monotonic(), timings

    def header(self, name: bytes) -> str | None:
        """A header's value by its lower-case name; the last where it was sent twice."""
        value = self.headers.get(name)
        return None if value is None else value.decode("latin-1")

    def hold(self, num_bytes: int) -> None:
        """Count the bytes of the body. Raises `Overloaded` if it is large and there is no room for it."""
        if self.share is None:
            if num_bytes <= LARGE_BYTES:
                return
            self.share = self.bodies.share(self.caller)
        self.share.hold(num_bytes)

    def release(self) -> None:
        """The request is answered: its body counts no more."""
        if self.share is not None:
            self.share.release()

    @property
    def media_type(self) -> str:
        """The content type without its parameters, in lower case; "" if there is none."""
        return (self.header(b"content-type") or "").partition(";")[0].strip().lower()

    @property
    def wants_open_metrics(self) -> bool:
        """Whether the client accepts OpenMetrics, the only format with exemplars."""
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
        """The seconds left of the shorter of `timeout_s` and the header's timeout; None if neither is given.

        Raises `DeadlineExceeded` if no time is left.
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
    """The path below the prefix at which a proxy mounts the server, if there is one.

    In ASGI, `path` includes `root_path`, but some servers and test clients leave it out. Ray Serve's
    `root_path` is that prefix (`http_options.root_path`), followed by the application's own part of the path.
    """
    path: str = scope["path"]
    root: str = scope.get("root_path", "").rstrip("/")
    whole = path if path == root or path.startswith(f"{root}/") else root + path
    prefix, models, name = root.rpartition(MODELS)
    is_of_models = models and (not name or name.startswith("/"))
    return whole.removeprefix(prefix if is_of_models else root) or "/"


LISTEN_AFTER_S = 0.05
"""A request that is answered sooner is worth no listener for its client's disconnect."""

ParamsT = ParamSpec("ParamsT")
ResultT = TypeVar("ResultT")


async def off_loop(
    request: Request,
    num_bytes: int,
    work: Callable[ParamsT, ResultT],
    *args: ParamsT.args,
    **kwargs: ParamsT.kwargs,
) -> ResultT:
    """Call `work`; if it processes many bytes, in another thread and in the turn of the request's caller."""
    if num_bytes < LARGE_BYTES:
        return work(*args, **kwargs)
    return await request.bodies.work(request.caller, num_bytes, work, *args, **kwargs)


async def while_connected(request: Request, work: Coroutine[Any, Any, ResultT]) -> ResultT:
    """Await `work`. If the client disconnects, cancel it and raise `CallerGone`. Read the body first.

    Listening for the disconnect costs a task, so it begins only after `LISTEN_AFTER_S`.
    """
    listener = _Listener(request.receive)
    try:
        return await work
    except asyncio.CancelledError:
        if not listener.has_cancelled():
            raise
        raise CallerGone("the client hung up before the model answered") from None
    finally:
        listener.stop()


class _Listener:
    """Cancels the task that creates it once the client has disconnected."""

    def __init__(self, receive: Receive) -> None:
        task = asyncio.current_task()
        assert task is not None, "a request is handled by a task. This is a bug."
        self._task = task
        self._receive = receive
        self._is_gone = False
        self._listening: asyncio.Task[None] | None = None
        self._start = task.get_loop().call_later(LISTEN_AFTER_S, self._listen)

    def has_cancelled(self) -> bool:
        """Whether a cancellation that the task has just received came from here alone."""
        return self._is_gone and self._task.uncancel() == 0

    def stop(self) -> None:
        self._start.cancel()
        if self._listening is not None:
            self._listening.cancel()

    def _listen(self) -> None:
        self._listening = self._task.get_loop().create_task(self._wait())

    async def _wait(self) -> None:
        while (await self._receive())["type"] != "http.disconnect":
            pass
        self._is_gone = True
        self._task.cancel()
