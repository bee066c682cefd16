"""The part both ASGI applications share: the protocol's messages, routing, errors, compression, counting.

ASGI 3.0: one callable of scope, receive and send.
"""

import logging
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Generic, TypeVar

from fewshard_serve.errors import CallerGone, ServeError
from fewshard_serve.http.encoding import choose_coding, pack
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

    service: what stands behind it.
    doors: who may enter; without them everybody.
    on_request: called once for each prediction that is asked for.
    routes: the endpoints of the whole server; the application serves its part of them.
    """

    def __init__(
        self,
        service: ServiceT,
        *,
        limits: Limits = Limits(),  # noqa: B008  it is frozen
        doors: AccessMiddleware | None = None,
        on_request: RequestHook = ignore_request,
        routes: Sequence[Route] = ROUTES,
    ) -> None:
        self._service = service
        self._doors = doors or AccessMiddleware()
        self._on_request = on_request
        self._router = Router(filter(self.serves, routes), self.missing)
        self._context = self.context(limits, routes)

    @abstractmethod
    def context(self, limits: Limits, routes: Sequence[Route]) -> HostContext | GatewayContext:
        """What the handlers of its routes are given."""

    @abstractmethod
    async def missing(self, _: Any, request: Request) -> Response:
        """The handler of paths that no route has; raises `NotFound`."""

    def serves(self, route: Route) -> bool:
        """Whether a route is its own."""
        return True

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            request = Request(scope, receive)
            self._doors.name(request)
            response = await self._answer(request)
            await _send_response(request, response, send, self._doors.echoes_id)
            self._doors.note(request, response)
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

    async def _counted(self, request: Request, route: Route) -> Response:
        """Answer, and tell how a prediction went, whatever happens."""
        protocol = route.protocol_of(request)
        outcome = CallerGone.code  # a cancelled handler gets to no other line
        try:
            self._doors.enter(request, route.scope_of(request))
            response = await self._handle(request, route)
            outcome = "ok"
            return response
        except ServeError as error:
            outcome = error.code
            raise
        except Exception:
            outcome = "internal"
            raise
        finally:
            if protocol is not None:
                self._doors.trace(request, protocol, outcome)
                self._on_request(request.model_name, protocol, outcome, request.elapsed_s, request.trace_id)

    async def _handle(self, request: Request, route: Route) -> Response:
        return await route.handler(self._context, request)


async def _packed(request: Request, response: Response) -> Response:
    """The response in the coding the client asks for. Errors stay plain: clients read them undecoded."""
    coding = choose_coding(request.header(b"accept-encoding"), len(response.body))
    if coding is None or response.status != 200:
        return response
    body = await off_loop(len(response.body), pack, response.body, coding)
    added = ((b"content-encoding", coding.encode()), (b"vary", b"accept-encoding"))
    return replace(response, body=body, headers=response.headers + added)


async def _send_response(request: Request, response: Response, send: Send, echoes_id: bool) -> None:
    headers = [
        (b"content-type", response.content_type),
        (b"content-length", b"%d" % len(response.body)),
        *response.headers,
        *request.answer_headers,
    ]
    if echoes_id:
        headers.append((REQUEST_ID_HEADER, request.id.encode()))
    if request.is_body_abandoned:
        headers.append((b"connection", b"close"))
    await send({"type": "http.response.start", "status": response.status, "headers": headers})
    await send({"type": "http.response.body", "body": b"" if request.is_head else response.body})


async def _live(receive: Receive, send: Send) -> None:
    while True:
        phase = (await receive())["type"]
        await send({"type": f"{phase}.complete"})
        if phase == "lifespan.shutdown":
            return
