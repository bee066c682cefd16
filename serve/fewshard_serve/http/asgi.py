"""The part both ASGI applications share: the protocol's messages, errors, compression, counting.

ASGI 3.0: one callable of scope, receive and send. A subclass only says how to respond to a request.
"""

import asyncio
import logging
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from dataclasses import replace
from typing import Any, TypeVar

from fewshard_serve.errors import CallerGone, MethodNotAllowed, ServeError
from fewshard_serve.http.encoding import choose_coding, pack
from fewshard_serve.http.middleware import REQUEST_ID_HEADER, AccessMiddleware, protocol_of
from fewshard_serve.http.request import Receive, Request, Scope, Send, off_loop
from fewshard_serve.http.responses import Response, error_in_words_of, unforeseen
from fewshard_serve.http.service import RequestHook, RequestProtocol

ResultT = TypeVar("ResultT")
HandlerT = TypeVar("HandlerT")

_logger = logging.getLogger("fewshard.http")


class App(ABC):
    """An ASGI application that answers every request with one complete response.

    `on_request` is called once for each prediction that is asked for.
    """

    def __init__(self, doors: AccessMiddleware | None, on_request: RequestHook) -> None:
        self._doors = doors or AccessMiddleware()
        self._on_request = on_request

    @abstractmethod
    async def respond(self, request: Request) -> Response:
        """The answer to a request, or any `ServeError`."""

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
        try:
            return await _packed(request, await self._counted(request))
        except ServeError as error:
            return error_in_words_of(protocol_of(request), error)
        except Exception:
            _logger.exception("%s %r failed", request.method, request.path)
            return error_in_words_of(protocol_of(request), unforeseen())

    async def _counted(self, request: Request) -> Response:
        protocol = protocol_of(request)
        if protocol is None:
            return await self._respond_inside(request)
        return await counted(self._told, protocol, request, self._respond_inside(request))

    def _told(self, request: Request, protocol: RequestProtocol, outcome: str) -> None:
        self._doors.trace(request, protocol, outcome)
        self._on_request(request.model_name, protocol, outcome, request.elapsed_s, request.trace_id)

    async def _respond_inside(self, request: Request) -> Response:
        self._doors.enter(request)
        return await self.respond(request)


def for_method(handlers: Mapping[str, HandlerT], request: Request) -> HandlerT:
    """The handler of the request's method. Raises `MethodNotAllowed` naming those there are."""
    handler = handlers.get(request.method)
    if handler is None:
        allowed = ", ".join(sorted({*handlers, *(["HEAD"] if "GET" in handlers else [])}))
        raise MethodNotAllowed(f"{request.path} does not take {request.method}; use {allowed}", allowed)
    return handler


async def counted(
    tell: Callable[[Request, RequestProtocol, str], None],
    protocol: RequestProtocol,
    request: Request,
    work: Awaitable[Response],
) -> Response:
    """Await `work` and tell how it went, whatever happens."""
    outcome = CallerGone.code  # a cancelled handler gets to no other line
    try:
        response = await work
        outcome = "ok"
        return response
    except ServeError as error:
        outcome = error.code
        raise
    except Exception:
        outcome = "internal"
        raise
    finally:
        tell(request, protocol, outcome)


async def while_connected(request: Request, work: Coroutine[Any, Any, ResultT]) -> ResultT:
    """Await `work`; cancel it and raise `CallerGone` when the client hangs up. Read the body first."""
    task = asyncio.ensure_future(work)
    gone = asyncio.ensure_future(_disconnected(request.receive))
    try:
        await asyncio.wait((task, gone), return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            return task.result()
        task.cancel()
        await asyncio.wait((task,))
        raise CallerGone("the client hung up before the model answered")
    finally:
        gone.cancel()
        task.cancel()


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


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
