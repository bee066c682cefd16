"""Authentication, request ids, tracing and access logs for every request.

`asgi.App` calls it before and after a request's handler; `rpc.inference` does the same for gRPC calls.
"""

import logging
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated

from fewshard_serve.auth import Scope as TokenScope
from fewshard_serve.auth import Tokens
from fewshard_serve.core import Caller
from fewshard_serve.errors import ConfigError, MalformedRequest
from fewshard_serve.http.callers import FORWARDED_FOR, CallersSettings, PageGuard, TrustedProxies
from fewshard_serve.http.cors import CorsSettings
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
    """The collector's URL; None to take it from the variables OTEL_EXPORTER_OTLP_*."""
    share: Share = 0.01
    """The share of requests without a client's trace that are traced, from 0 to 1."""


@dataclass(frozen=True, slots=True)
class AccessSettings:
    """The settings of access checks, logs and traces in one process.

    tokens_file: the path of the tokens file; empty if no token is required.
    limits: the limits of one request.
    logs: the format of logs, and whether requests are logged.
    log_path: the file to append log lines to; empty for standard error.
    is_behind_haproxy: our own HAProxy set the last X-Forwarded-For and has refused invalid request ids.
    tracing: None if requests are not traced.
    cors: None if no page of another origin may call.
    callers: where requests may come from.
    guards_pages: requests of other sites' pages are refused.
    is_on_loopback: the server listens for its own machine alone.
    launcher_sha256: the SHA-256 of the launcher's own token, in hexadecimal; empty if it has none.
    """

    tokens_file: str = ""
    limits: Limits = field(default_factory=Limits)
    logs: LogSettings = field(default_factory=LogSettings)
    log_path: str = ""
    is_behind_haproxy: bool = False
    tracing: TracingSettings | None = None
    cors: CorsSettings | None = None
    callers: CallersSettings = field(default_factory=CallersSettings)
    guards_pages: bool = False
    is_on_loopback: bool = False
    launcher_sha256: str = ""


class AccessMiddleware:
    """Checks access to one application, and identifies, logs and traces its requests.

    echoes_id: whether the application sends X-Request-Id back, because no proxy in front of it does.
    """

    def __init__(self, settings: AccessSettings = AccessSettings(), echoes_id: bool = True) -> None:
        self.tokens = None
        if settings.tokens_file:
            self.tokens = Tokens(settings.tokens_file, launcher_sha256=settings.launcher_sha256)
        self.echoes_id = echoes_id
        self.is_behind_haproxy = settings.is_behind_haproxy
        self.cors = settings.cors
        self._guard = None
        if settings.guards_pages:
            self._guard = PageGuard(settings.callers.hosts, settings.cors, settings.is_on_loopback)
        self._proxies = TrustedProxies(settings.callers.trusted_proxies)
        self._logs_requests = settings.logs.requests
        self.tracing = None if settings.tracing is None else _open_tracing(settings.tracing)

    def name(self, request: Request) -> None:
        """Set the request's id and trace parent, for answers and log lines."""
        request.trace_parent = read_traceparent(request.header(b"traceparent"))
        request.id = self.identify(request.header(REQUEST_ID_HEADER), request.trace_parent)

    def identify(self, given: str | None, parent: TraceParent | None) -> str:
        """Return the request's id: the client's if it is valid, else a new one. Log lines then include it."""
        request_id = given if given and _SANE_ID.fullmatch(given) else os.urandom(16).hex()
        ids = {"request_id": request_id}
        REQUEST.set(ids if parent is None else {**ids, "trace_id": parent.trace_id})
        return request_id

    def enter(self, request: Request, scope: Scope) -> None:
        """Set the request's caller, unless its route is open.

        Raises as `admit` does, and `Forbidden` for a request of another site's page.
        """
        if scope == "open":
            return
        request.caller = self.admit(
            request.header(b"authorization"),
            request.header(PRIORITY_HEADER),
            self._address(request),
            None if scope == "any" else scope,
        )
        if self._guard is not None:
            self._guard.check(request)

    def admit(
        self, authorization: str | None, priority: str | None, address: str, scope: TokenScope | None
    ) -> Caller:
        """Return the caller. `scope`: the scope that the token must have; None if any token is enough.

        Raises `Unauthorized`, `Forbidden`, or `MalformedRequest` for an unknown priority.
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
        """Create the spans of an answered request, if tracing is configured and the request is sampled."""
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
        """Write the request's access log line, if configured."""
        self.log(
            request.method,
            request.path,
            response.status,
            request.elapsed_s,
            request.model_name,
            request.caller.name,
        )

    def log(self, method: str, path: str, status: int | str, seconds: float, model: str, caller: str) -> None:
        """Write one access log line, if configured."""
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
        """Reload the tokens file. Return False if there is none or it cannot be read."""
        try:
            if self.tokens is not None:
                self.tokens.reload()
            return self.tokens is not None
        except ConfigError as error:
            _logger.error("the old tokens stay: %s", error)
            return False

    def caller_behind(self, peer: str, forwarded: Sequence[str]) -> str:
        """The address of the caller, as `TrustedProxies.caller_behind` finds it."""
        return self._proxies.caller_behind(peer, forwarded)

    def _address(self, request: Request) -> str:
        client = request.scope.get("client")
        peer = client[0] if client else ""
        if FORWARDED_FOR not in request.headers:
            return peer
        if not self._proxies:
            return (request.header(FORWARDED_FOR) if self.is_behind_haproxy else "") or peer
        forwarded = [
            value.decode("latin-1") for name, value in request.scope["headers"] if name == FORWARDED_FOR
        ]
        if self.is_behind_haproxy:
            *forwarded, peer = forwarded
        return self.caller_behind(peer, forwarded)


def _open_tracing(settings: TracingSettings) -> "Tracing":
    """Import OpenTelemetry only if tracing is configured: the import takes a fifth of a second."""
    from fewshard_serve.tracing import OtlpExporter, Tracing

    return Tracing(OtlpExporter(settings.endpoint), settings.share)


def _is_urgent(priority: str | None) -> bool:
    if priority in (None, "normal"):
        return False
    if priority != "high":
        raise MalformedRequest("X-Request-Priority must be high or normal")
    return True
