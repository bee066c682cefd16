"""Reads the body of a request within its limits, unpacked, and counts it while it is large."""

import asyncio
from contextlib import suppress

from fewshard_serve.errors import CallerGone, DeadlineExceeded, MalformedRequest, Overloaded, TooLarge
from fewshard_serve.http.encoding import max_unpacked, unpack
from fewshard_serve.http.large_bodies import LARGE_BYTES
from fewshard_serve.http.request import Request, off_loop
from fewshard_serve.protocol.limits import Limits

SMALL_PACKED_BYTES = 16 * 1024
"""A packed body below this size is unpacked on the event loop, if the result is small too."""


async def read_body(request: Request, limits: Limits) -> bytes:
    """Read the whole body and undo its Content-Encoding.

    Raises `TooLarge` (before reading if Content-Length is too large, else while reading), `Overloaded` if the
    process holds too many large bodies, `DeadlineExceeded` if the body arrives too slowly, `CallerGone`,
    `UnsupportedMedia` or `MalformedRequest`.
    """
    max_bytes = limits.max_body_bytes
    _check_length(request, max_bytes)
    try:
        async with asyncio.timeout(limits.max_body_s):
            body = await _receive_all(request, max_bytes)
    except TimeoutError:
        request.is_body_abandoned = True
        raise DeadlineExceeded(
            f"the body did not arrive within {limits.max_body_s:g} s (max_body_s); send it faster"
        ) from None
    coding = request.header(b"content-encoding")
    if coding is None:
        return body
    return await _unpacked(request, body, coding, max_bytes)


async def _unpacked(request: Request, body: bytes, coding: str, max_bytes: int) -> bytes:
    """What waits for its turn counts as it came; few unpack at a time, so the result may be counted after."""
    if len(body) < SMALL_PACKED_BYTES and max_bytes > LARGE_BYTES:
        with suppress(TooLarge):
            return unpack(body, coding, LARGE_BYTES)
    plain = await off_loop(
        request, max_unpacked(len(body), coding, max_bytes), unpack, body, coding, max_bytes
    )
    request.hold(len(plain))
    return plain


def _check_length(request: Request, max_bytes: int) -> None:
    length = request.headers.get(b"content-length")
    if length is None:
        return
    if not length.isdigit():
        raise MalformedRequest("Content-Length is not a number")
    if len(length) > 18 or int(length) > max_bytes:
        raise _too_large(request, max_bytes)


async def _receive_all(request: Request, max_bytes: int) -> bytes:
    """Receive every part. One that finds no room is read to its end, and dropped: a connection that is closed
    while its client sends loses the answer."""
    chunks, num_bytes = [], 0
    refusal: Overloaded | None = None
    while True:
        message = await request.receive()
        if message["type"] == "http.disconnect":
            raise CallerGone("the client hung up while its request was read")
        chunk: bytes = message.get("body", b"")
        num_bytes += len(chunk)
        if num_bytes > max_bytes:
            raise _too_large(request, max_bytes)
        if refusal is None:
            chunks.append(chunk)
            refusal = _hold(request, num_bytes)
        if refusal is not None:
            chunks.clear()
        if not message.get("more_body", False):
            break
    if refusal is not None:
        raise refusal
    return chunks[0] if len(chunks) == 1 else b"".join(chunks)


def _hold(request: Request, num_bytes: int) -> Overloaded | None:
    """Count the bytes. Return the error if there is no room for them; then the request holds none."""
    try:
        request.hold(num_bytes)
    except Overloaded as error:
        request.release()
        return error
    return None


def _too_large(request: Request, max_bytes: int) -> TooLarge:
    request.is_body_abandoned = True
    return TooLarge(f"the body has over {max_bytes} bytes (max_body_bytes); send less at once")
