"""The base of both ASGI applications: ASGI 3.0 messages, routing, errors, compression and request counts.

`host` and `gateway` derive the applications from it.
"""

import logging
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Generic, TypeVar

from fewshard_serve.errors import CallerGone, Forbidden, ServeError, Unauthorized
from fewshard_serve.http.cors import headers, preflight
from fewshard_serve.http.encoding import choose_coding, pack
from fewshard_serve.http.large_bodies import LargeBodies
from fewshard_serve.http.middleware import REQUEST_ID_HEADER, AccessMiddleware
from fewshard_serve.http.request import Receive, Request, Scope, Send, off_loop
from fewshard_serve.http.responses import Response, unforeseen
from fewshard_serve.http.routes import ROUTES
from fewshard_serve.http.routing import Route, Router
from fewshard_serve.http.service import GatewayContext, HostContext, RequestHook, ignore_request
from fewshard_serve.protocol.limits import Limits

_logger = logging.getLogger("fewshard.http")


ServiceT = TypeVar("ServiceT")


class App(ABC, Generic[ServiceT]):
    """An ASGI application that answers every request with one complete response.

    service: the service behind it.
    doors: checks access, logs and traces; by default everybody has access.
    bodies: the large bodies of the process; by default those of this application alone.
    on_request: called once for each prediction request.
    routes: the endpoints of the whole server, of which the application serves a part.
    """

    def __init__(
        self,
        service: ServiceT,
        *,
        limits: Limits = Limits(),  # noqa: B008  it is frozen
        doors: AccessMiddleware | None = None,
        bodies: LargeBodies | None = None,
        on_request: RequestHook = ignore_request,
        routes: Sequence[Route] = ROUTES,
    ) -> None:
        self._service = service
        self._access = doors or AccessMiddleware()
        self._bodies = bodies or LargeBodies(limits)
        self._on_request = on_request
        self._router = Router(filter(self.serves, routes), self.missing)
        self._context = self.context(limits, routes)

    @abstractmethod
    def context(self, limits: Limits, routes: Sequence[Route]) -> HostContext | GatewayContext:
        """The context that the handlers of its routes receive."""

    @abstractmethod
    async def missing(self, _: Any, request: Request) -> Response:
        """The handler of unknown paths. Raises `NotFound`."""

    def serves(self, route: Route) -> bool:
        """Whether the application serves this route."""
        return True

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            request = Request(scope, receive, self._bodies)
            self._access.name(request)
            cors = self._access.cors
            response = preflight(cors, request) or await self._answer(request)
            request.answer_headers += headers(cors, request)
            await _send_response(request, response, send, self._access.echoes_id)
            self._access.note(request, response)
        elif scope["type"] == "lifespan":
            await _live(receive, send)
        else:
            await send({"type": "websocket.close", "code": 1003, "reason": "only HTTP is spoken here"})

    async def _answer(self, request: Request) -> Response:
        route, request.parameters = self._router.match(request.method, request.path)
        try:
            return await _packed(request, await self._counted(request, route))
        except ServeError as error:
            return route.encode_error(error)
        except Exception:
            _logger.exception("%s %r failed", request.method, request.path)
            return route.encode_error(unforeseen())
        finally:
            request.release()

    async def _counted(self, request: Request, route: Route) -> Response:
        """Answer the request, and report the outcome of a prediction in every case."""
        protocol = route.protocol_of(request)
        outcome = CallerGone.code  # stays only if the handler is cancelled
        try:
            self._access.enter(request, route.scope_of(request))
            response = await self._handle(request, route)
            outcome = "ok"
            return response
        except ServeError as error:
            outcome = error.code
            if isinstance(error, Unauthorized | Forbidden) and _has_body(request):
                request.is_body_abandoned = True  # it may never come
            raise
        except Exception:
            outcome = "internal"
            raise
        finally:
            if protocol is not None:
                self._access.trace(request, protocol, outcome)
                self._on_request(request.model_name, protocol, outcome, request.elapsed_s, request.trace_id)

    async def _handle(self, request: Request, route: Route) -> Response:
        return await route.handler(self._context, request)


def _has_body(request: Request) -> bool:
    headers = request.headers
    return b"transfer-encoding" in headers or headers.get(b"content-length", b"0") != b"0"


async def _packed(request: Request, response: Response) -> Response:
    """The response in the client's preferred coding. Errors stay plain: some clients do not decode them."""
    coding = choose_coding(request.header(b"accept-encoding"), len(response.body))
    if coding is None or response.status != 200:
        return response
    body = await off_loop(request, len(response.body), pack, response.body, coding)
    added = ((b"content-encoding", coding.encode()), (b"vary", b"accept-encoding"))
    return replace(response, body=body, headers=response.headers + added)


async def _send_response(request: Request, response: Response, send: Send, echoes_id: bool) -> None:
    sent = [
        (b"content-type", response.content_type),
        (b"content-length", b"%d" % len(response.body)),
        *response.headers,
        *request.answer_headers,
    ]
    if echoes_id:
        sent.append((REQUEST_ID_HEADER, request.id.encode()))
    if request.is_body_abandoned:
        sent.append((b"connection", b"close"))
    await send({"type": "http.response.start", "status": response.status, "headers": sent})
    await send({"type": "http.response.body", "body": b"" if request.is_head else response.body})


async def _live(receive: Receive, send: Send) -> None:
    while True:
        phase = (await receive())["type"]
        await send({"type": f"{phase}.complete"})
        if phase == "lifespan.shutdown":
            return
