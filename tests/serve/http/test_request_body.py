"""Reading a body message by message, within a limit, from clients that lie or leave."""

import asyncio
import gzip
import random
import threading
import time
from collections.abc import Coroutine, Iterable
from typing import Any

import pytest

from fewshard_serve.core import ANYBODY, Caller
from fewshard_serve.errors import (
    CallerGone,
    DeadlineExceeded,
    MalformedRequest,
    Overloaded,
    ServeError,
    TooLarge,
)
from fewshard_serve.http.body import read_body
from fewshard_serve.http.large_bodies import LARGE_BYTES, TIMES_LARGEST, LargeBodies
from fewshard_serve.http.request import Request, full_path, off_loop
from fewshard_serve.protocol.limits import Limits


def request_of(
    messages: Iterable[dict[str, Any]],
    headers: dict[bytes, bytes] | None = None,
    bodies: LargeBodies | None = None,
    caller: Caller = ANYBODY,
) -> Request:
    left = iter(messages)

    async def receive() -> dict[str, Any]:
        return next(left)

    scope = {"type": "http", "method": "POST", "path": "/x", "headers": [*(headers or {}).items()]}
    request = Request(scope, receive, bodies)
    request.caller = caller
    return request


def part(body: bytes, more: bool) -> dict[str, Any]:
    return {"type": "http.request", "body": body, "more_body": more}


def read(request: Request, max_bytes: int = 10) -> bytes:
    return asyncio.run(read_body(request, Limits(max_body_bytes=max_bytes)))


def test_a_body_is_its_parts_in_order() -> None:
    assert read(request_of([part(b"abc", False)])) == b"abc"
    assert read(request_of([part(b"ab", True), part(b"", True), part(b"c", False)])) == b"abc"
    assert read(request_of([{"type": "http.request"}])) == b""


def test_a_body_that_says_it_is_too_large_is_not_read() -> None:
    request = request_of([], {b"content-length": b"11"})
    with pytest.raises(TooLarge, match="max_body_bytes"):
        read(request)
    assert request.is_body_abandoned
    with pytest.raises(TooLarge):
        read(request_of([], {b"content-length": b"9" * 5000}))


def test_a_body_that_grows_too_large_is_left() -> None:
    request = request_of([part(b"123456", True), part(b"78901", True)])
    with pytest.raises(TooLarge):
        read(request)
    assert request.is_body_abandoned


def test_the_limit_itself_is_allowed() -> None:
    request = request_of([part(b"1234567890", False)], {b"content-length": b"10"})
    assert read(request) == b"1234567890"
    assert not request.is_body_abandoned


@pytest.mark.parametrize("length", [b"x", b"-1", b"", b"1.5"])
def test_a_length_that_is_no_number_is_malformed(length: bytes) -> None:
    with pytest.raises(MalformedRequest, match="Content-Length"):
        read(request_of([], {b"content-length": length}))


def test_a_client_that_leaves_is_gone() -> None:
    with pytest.raises(CallerGone):
        read(request_of([part(b"ab", True), {"type": "http.disconnect"}]))


def test_the_limit_holds_before_and_after_unpacking() -> None:
    packed = gzip.compress(b"x" * 50)
    coding = {b"content-encoding": b"gzip"}
    assert read(request_of([part(packed, False)], coding), 50) == b"x" * 50
    with pytest.raises(TooLarge):
        read(request_of([part(packed, False)], coding), 49)


def test_large_bodies_have_one_budget_of_bytes_and_a_caller_leaves_room_for_others() -> None:
    limits = Limits(max_body_bytes=100 * LARGE_BYTES)
    bodies = LargeBodies(limits)
    body = b"x" * limits.max_body_bytes
    packed = gzip.compress(random.Random(0).randbytes(60 * LARGE_BYTES))

    async def ask(caller: str, content: bytes, coding: bytes | None = None) -> Request:
        half = len(content) // 2
        parts = [part(content[:half], True), part(content[half:], False)]
        request = request_of(parts, {b"content-encoding": coding} if coding else {}, bodies, Caller(caller))
        await read_body(request, limits)
        return request

    async def run() -> None:
        held = [await ask("a", body) for _ in range(TIMES_LARGEST - 1)]
        rest = iter([part(body[:-1], True), part(b"", True), part(b"x", False)])
        refused = request_of(rest, {}, bodies, Caller("a"))
        with pytest.raises(Overloaded, match="large bodies"):
            await read_body(refused, limits)
        assert next(rest, None) is None, "the rest is read, or the client might not see the answer"
        assert not refused.is_body_abandoned
        assert bodies.budget.used == 100 * (TIMES_LARGEST - 1) * LARGE_BYTES
        await ask("a", b"small")
        held.append(await ask("b", packed, b"gzip"))
        assert bodies.budget.used == (100 * (TIMES_LARGEST - 1) + 60) * LARGE_BYTES, "as it is unpacked"
        for request in held:
            request.release()
        refused.release()
        assert bodies.budget.used == 0

    asyncio.run(run())


def test_one_large_body_is_unpacked_at_a_time_and_no_caller_waits_for_anothers_backlog(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    began, running = [], threading.Lock()

    def unpack(body: bytes, *_: Any) -> bytes:
        assert running.acquire(blocking=False), "one at a time"
        began.append(body[:1])
        time.sleep(0.01)
        running.release()
        return body

    monkeypatch.setattr("fewshard_serve.http.body.unpack", unpack)
    bodies = LargeBodies()

    def ask(caller: str) -> Coroutine[Any, Any, bytes]:
        content = caller.encode() * LARGE_BYTES
        request = request_of([part(content, False)], {b"content-encoding": b"gzip"}, bodies, Caller(caller))
        return read_body(request, Limits())

    async def run() -> None:
        await asyncio.gather(*(ask(caller) for caller in "aaaaaaaab"))

    asyncio.run(run())
    assert len(began) == 9
    assert began.index(b"b") <= 2


def test_a_large_body_whose_turn_does_not_come_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fewshard_serve.http.large_bodies.MAX_TURN_WAIT_S", 0.05)
    bodies, gate = LargeBodies(), threading.Event()

    async def run() -> None:
        running = asyncio.create_task(bodies.work(Caller("a"), LARGE_BYTES, gate.wait, 20))
        await asyncio.sleep(0)
        with pytest.raises(Overloaded, match="large bodies"):
            await bodies.work(Caller("b"), LARGE_BYTES, pytest.fail)
        assert await bodies.work(Caller("b"), 1, threading.get_ident) == threading.get_ident()
        gate.set()
        assert await running
        assert await bodies.work(Caller("b"), LARGE_BYTES, lambda: True)

    asyncio.run(run())


def test_a_body_that_unpacks_to_a_hundred_times_its_size_is_refused_where_it_is_large() -> None:
    coding = {b"content-encoding": b"gzip"}
    for num_bytes in (1000, 200_000, 1_000_000):
        packed = gzip.compress(b"0," * (num_bytes // 2))
        assert len(read(request_of([part(packed, False)], coding), 2**25)) == num_bytes
    packed = gzip.compress(b"0," * 8_000_000)
    with pytest.raises(TooLarge, match="over 100 times its size"):
        read(request_of([part(packed, False)], coding), 2**25)


def test_large_work_leaves_the_event_loop() -> None:
    async def threads() -> list[int]:
        request = request_of([])
        return [await off_loop(request, size, threading.get_ident) for size in (LARGE_BYTES - 1, LARGE_BYTES)]

    small, large = asyncio.run(threads())
    assert small == threading.get_ident()
    assert large != small


@pytest.mark.parametrize(
    ("path", "root", "full"),
    [
        ("/v2/models/m", "/v2/models", "/v2/models/m"),
        ("/m", "/v2/models", "/v2/models/m"),
        ("/v2/models", "/v2/models", "/v2/models"),
        ("/v2/modelsx", "/v2/models", "/v2/models/v2/modelsx"),
        ("/v2", "", "/v2"),
        ("/v2", "/", "/v2"),
        ("/below/v2", "/below", "/v2"),
        ("/v2", "/below", "/v2"),
        ("/below", "/below", "/"),
        ("/a/b/v2/models/m", "/a/b/v2/models", "/v2/models/m"),
        ("/below/v2/models/m/infer", "/below/v2/models/m", "/v2/models/m/infer"),
        ("/v2/models/v2/models/m", "/v2/models/v2/models", "/v2/models/m"),
    ],
)
def test_the_path_is_whole_in_both_spellings(path: str, root: str, full: str) -> None:
    assert full_path({"path": path, "root_path": root}) == full


@pytest.mark.parametrize("value", [b"0", b"-5", b"1.5", b"soon", b"", b"9" * 40, "²".encode("latin-1")])
def test_a_timeout_that_is_no_number_is_malformed(value: bytes) -> None:
    with pytest.raises(MalformedRequest, match="X-Request-Timeout-Ms"):
        request_of([], {b"x-request-timeout-ms": value}).seconds_left()


def test_the_shorter_timeout_counts_from_the_requests_arrival() -> None:
    request = request_of([], {b"x-request-timeout-ms": b"2000"})
    request.started_at -= 0.5
    assert request.seconds_left() == pytest.approx(1.5, abs=0.1)
    assert request.seconds_left(1.0) == pytest.approx(0.5, abs=0.1)
    assert request.seconds_left(9.0) == pytest.approx(1.5, abs=0.1)
    with pytest.raises(DeadlineExceeded):
        request.seconds_left(0.4)
    assert request_of([]).seconds_left() is None


def test_a_query_that_is_not_utf8_is_malformed() -> None:
    request = request_of([])
    request.scope["query_string"] = b"top_k=\xff"
    with pytest.raises(ServeError, match="query"):
        assert request.query
