"""ASGI below HTTP clients: callers that leave, cancelled handlers, lifespan, WebSockets."""

import asyncio
from typing import Any

import pytest

from fewshard_serve.http.host import HostApp

Model = Any
Counted = list[tuple[str, str, str]]
Message = dict[str, Any]

SCOPE = {
    "type": "http",
    "method": "POST",
    "path": "/v2/models/sst2/classify",
    "headers": [],
    "query_string": b"",
}


def body_then(*rest: Message) -> "asyncio.Queue[Message]":
    queue: asyncio.Queue[Message] = asyncio.Queue()
    for message in ({"type": "http.request", "body": b'{"inputs":"a"}', "more_body": False}, *rest):
        queue.put_nowait(message)
    return queue


def test_the_work_of_a_caller_that_leaves_is_cancelled(
    host: HostApp, text_model: Model, counted_requests: Counted
) -> None:
    async def leave_while_waiting() -> list[Message]:
        text_model.hold = asyncio.Event()
        incoming, sent = body_then(), []

        async def send(message: Message) -> None:
            assert text_model.was_cancelled  # before the answer, so that its room is free again
            sent.append(message)

        answering = asyncio.create_task(host(dict(SCOPE), incoming.get, send))
        while not text_model.calls:
            await asyncio.sleep(0)
        assert not answering.done()
        incoming.put_nowait({"type": "http.disconnect"})
        await asyncio.wait_for(answering, 5)
        return sent

    start, _ = asyncio.run(leave_while_waiting())
    assert start["status"] == 499
    assert counted_requests == [("sst2", "classify", "caller_gone")]
    assert text_model.stats.requests["fail"].count == 1


def test_a_handler_that_is_cancelled_cancels_its_work(
    host: HostApp, text_model: Model, counted_requests: Counted
) -> None:
    async def cancel() -> None:
        text_model.hold = asyncio.Event()

        async def send(_: Message) -> None:
            raise AssertionError("nothing may be sent")

        answering = asyncio.create_task(host(dict(SCOPE), body_then().get, send))
        while not text_model.calls:
            await asyncio.sleep(0)
        answering.cancel()
        with pytest.raises(asyncio.CancelledError):
            await answering
        await asyncio.sleep(0)
        assert len(asyncio.all_tasks()) == 1

    asyncio.run(cancel())
    assert text_model.was_cancelled
    assert counted_requests == [("sst2", "classify", "caller_gone")]


def test_no_task_is_left_when_the_answer_is_sent(host: HostApp) -> None:
    async def answer() -> list[Message]:
        sent: list[Message] = []

        async def send(message: Message) -> None:
            sent.append(message)

        await host(dict(SCOPE), body_then().get, send)
        await asyncio.sleep(0)
        assert len(asyncio.all_tasks()) == 1
        return sent

    assert [message["type"] for message in asyncio.run(answer())] == [
        "http.response.start",
        "http.response.body",
    ]


def exchange(app: HostApp, scope: Message, incoming: list[Message]) -> list[Message]:
    left, sent = iter(incoming), []

    async def receive() -> Message:
        return next(left)

    async def send(message: Message) -> None:
        sent.append(message)

    asyncio.run(app(scope, receive, send))
    return sent


def test_head_sends_no_body(host: HostApp) -> None:
    head = {"type": "http", "method": "HEAD", "path": "/v2/models/sst2", "headers": []}
    start, body = exchange(host, head, [])
    assert int(dict(start["headers"])[b"content-length"]) > 0
    assert body["body"] == b""


def test_lifespan_starts_and_stops(host: HostApp) -> None:
    sent = exchange(host, {"type": "lifespan"}, [{"type": "lifespan.startup"}, {"type": "lifespan.shutdown"}])
    assert [message["type"] for message in sent] == [
        "lifespan.startup.complete",
        "lifespan.shutdown.complete",
    ]


def test_a_websocket_is_refused(host: HostApp) -> None:
    (closed,) = exchange(host, {"type": "websocket", "path": "/"}, [])
    assert closed["type"] == "websocket.close"
