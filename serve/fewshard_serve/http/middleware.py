"""What every HTTP request passes first: who asks, may they, and under which name it is traced and logged.

`asgi.App` calls it before and after the handler of a request.
"""

import logging
import os
import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated

from fewshard_serve.auth import Scope as TokenScope
from fewshard_serve.auth import Tokens
from fewshard_serve.core import Caller
from fewshard_serve.errors import ConfigError, MalformedRequest
from fewshard_serve.http.request import Request
from fewshard_serve.http.responses import Response
from fewshard_serve.http.routing import Scope
from fewshard_serve.logs import ACCESS, REQUEST, LogSettings
from fewshard_serve.protocol.limits import Limits
from fewshard_serve.settings import NO_OTHER_KEYS, Rules, Share
from fewshard_serve.tracecontext import TraceParent, read_traceparent

if TYPE_CHECKING:
    from fewshard_serve.tracing import Tracing

REQUEST_ID_HEADER = b"x-request-id"
PRIORITY_HEADER = b"x-request-priority"
REQUEST_ID_PATTERN = "[A-Za-z0-9._:+/=@-]{1,128}"

_logger = logging.getLogger("fewshard.http")
_SANE_ID = re.compile(REQUEST_ID_PATTERN)
_MAX_LOGGED_PATH = 256


@dataclass(frozen=True, slots=True)
class TracingSettings:
    """OpenTelemetry traces of requests; none without this section."""

    __pydantic_config__ = NO_OTHER_KEYS

    endpoint: Annotated[str, Rules(pattern=r"^https?://[^\s]+$")] | None = None
    """The collector's URL; None where the variables OTEL_EXPORTER_OTLP_* say it."""
    share: Share = 0.01
    """Of the requests that come without a trace, from 0 to 1."""


@dataclass(frozen=True, slots=True)
class AccessSettings:
    """What a replica needs to know to open its doors. `tokens_file` is empty where no token is asked for.

    `log_path` is a file to append log lines to; where it is empty they go to standard error.

    `is_behind_haproxy`: the last X-Forwarded-For is our own proxy's word, and it has refused odd request ids.
    """

    tokens_file: str = ""
    limits: Limits = field(default_factory=Limits)
    logs: LogSettings = field(default_factory=LogSettings)
    log_path: str = ""
    is_behind_haproxy: bool = False
    tracing: TracingSettings | None = None


class AccessMiddleware:
    """The doors of one ASGI application. `echoes_id`: nobody in front of it sends X-Request-Id back."""

    def __init__(self, settings: AccessSettings = AccessSettings(), echoes_id: bool = True) -> None:
        self.tokens = Tokens(settings.tokens_file) if settings.tokens_file else None
        self.echoes_id = echoes_id
        self.is_behind_haproxy = settings.is_behind_haproxy
        self._logs_requests = settings.logs.requests
        self.tracing = None if settings.tracing is None else _open_tracing(settings.tracing)

    def name(self, request: Request) -> None:
        """Give the request its id and trace, for answers and log lines."""
        request.trace_parent = read_traceparent(request.header(b"traceparent"))
        request.id = self.identify(request.header(REQUEST_ID_HEADER), request.trace_parent)

    def identify(self, given: str | None, parent: TraceParent | None) -> str:
        """The id of a request, the client's own where it is sane; from now on in its log lines."""
        request_id = given if given and _SANE_ID.fullmatch(given) else os.urandom(16).hex()
        ids = {"request_id": request_id}
        REQUEST.set(ids if parent is None else {**ids, "trace_id": parent.trace_id})
        return request_id

    def enter(self, request: Request, scope: Scope) -> None:
        """Say who asks, except where anybody may. Raises as `admit` does."""
        if scope != "open":
            request.caller = self.admit(
                request.header(b"authorization"),
                request.header(PRIORITY_HEADER),
                self._address(request),
                None if scope == "any" else scope,
            )

    def admit(
        self, authorization: str | None, priority: str | None, address: str, scope: TokenScope | None
    ) -> Caller:
        """Who asks; `scope`: what their token must be good for, None where any token will do.

        Raises `Unauthorized`, `Forbidden`, or `MalformedRequest` for an odd priority.
        """
        is_urgent = _is_urgent(priority)
        if self.tokens is None:
            return Caller(address, is_urgent)
        holder = self.tokens.holder_of(authorization)
        for needed in (scope, "priority" if is_urgent else None):
            if needed is not None:
                holder.check(needed)
        return Caller(holder.name, is_urgent)

    def trace(self, request: Request, protocol: str, outcome: str) -> None:
        """Give an answered request its spans, where that is configured and it is one of the share."""
        if self.tracing is None:
            return
        from fewshard_serve.tracing import Traced

        request.trace_id = self.tracing.report(
            Traced(
                request.model_name,
                protocol,
                outcome,
                request.id,
                request.trace_parent,
                request.started_at,
                request.answered_at,
                request.timings,
            )
        )

    def note(self, request: Request, response: Response) -> None:
        """Write the request down, where that is configured."""
        self.log(
            request.method,
            request.path,
            response.status,
            request.elapsed_s,
            request.model_name,
            request.caller.name,
        )

    def log(self, method: str, path: str, status: int | str, seconds: float, model: str, caller: str) -> None:
        """The line of one request."""
        if self._logs_requests:
            fields = {
                "method": method,
                "path": path[:_MAX_LOGGED_PATH],
                "status": status,
                "ms": round(seconds * 1000, 3),
                "model": model,
                "caller": caller,
            }
            ACCESS.info("%s %r %s", method, fields["path"], status, extra={"fields": fields})

    def reload_tokens(self) -> bool:
        """Read the tokens file again; False where there is none that can be read."""
        try:
            if self.tokens is not None:
                self.tokens.reload()
            return self.tokens is not None
        except ConfigError as error:
            _logger.error("the old tokens stay: %s", error)
            return False

    def _address(self, request: Request) -> str:
        forwarded = request.header(b"x-forwarded-for") if self.is_behind_haproxy else None
        client = request.scope.get("client")
        return forwarded or (client[0] if client else "")


def _open_tracing(settings: TracingSettings) -> "Tracing":
    """Imported only where it is asked for: OpenTelemetry takes a fifth of a second."""
    from fewshard_serve.tracing import OtlpExporter, Tracing

    return Tracing(OtlpExporter(settings.endpoint), settings.share)


def _is_urgent(priority: str | None) -> bool:
    if priority in (None, "normal"):
        return False
    if priority != "high":
        raise MalformedRequest("X-Request-Priority must be high or normal")
    return True
