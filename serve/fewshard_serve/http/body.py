"""Reads request bodies within a limit; called by the handlers that take one."""

import asyncio
from collections.abc import Callable
from typing import ParamSpec, TypeVar

from fewshard_serve.errors import CallerGone, DeadlineExceeded, MalformedRequest, TooLarge
from fewshard_serve.http.encoding import unpack
from fewshard_serve.http.request import Request
from fewshard_serve.protocol.limits import Limits

LARGE_BYTES = 64 * 1024
"""From here on, unpacking or parsing a body could hold up the event loop for a millisecond or more."""

ParamsT = ParamSpec("ParamsT")
ResultT = TypeVar("ResultT")


async def read_body(request: Request, limits: Limits) -> bytes:
    """The whole body, without its Content-Encoding.

    Raises `TooLarge` before reading where Content-Length says so, while reading otherwise; `DeadlineExceeded`
    for a body that is sent too slowly, `CallerGone`, `UnsupportedMedia` or `MalformedRequest`.
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
    return await off_loop(max_bytes, unpack, body, coding, max_bytes)


async def off_loop(
    num_bytes: int, work: Callable[ParamsT, ResultT], *args: ParamsT.args, **kwargs: ParamsT.kwargs
) -> ResultT:
    """Call `work`, on another thread where it has many bytes to go through."""
    if num_bytes < LARGE_BYTES:
        return work(*args, **kwargs)
    return await asyncio.to_thread(work, *args, **kwargs)


def _check_length(request: Request, max_bytes: int) -> None:
    length = request.headers.get(b"content-length")
    if length is None:
        return
    if not length.isdigit():
        raise MalformedRequest("Content-Length is not a number")
    if len(length) > 18 or int(length) > max_bytes:
        raise _too_large(request, max_bytes)


async def _receive_all(request: Request, max_bytes: int) -> bytes:
    chunks, num_bytes = [], 0
    while True:
        message = await request.receive()
        if message["type"] == "http.disconnect":
            raise CallerGone("the client hung up while its request was read")
        chunk: bytes = message.get("body", b"")
        num_bytes += len(chunk)
        if num_bytes > max_bytes:
            raise _too_large(request, max_bytes)
        chunks.append(chunk)
        if not message.get("more_body", False):
            return chunks[0] if len(chunks) == 1 else b"".join(chunks)


def _too_large(request: Request, max_bytes: int) -> TooLarge:
    request.is_body_abandoned = True
    return TooLarge(f"the body has over {max_bytes} bytes (max_body_bytes); send less at once")
