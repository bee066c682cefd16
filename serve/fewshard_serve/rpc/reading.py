"""Reads the messages of gRPC calls: after the caller is known, few at a time, and looked at before parsed.

gRPC receives a message only when it is asked for, so what waits here costs its sender's memory, not ours.
`inference` and `health` read with it.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import suppress
from typing import Any
from urllib.parse import unquote

import grpc
import numpy as np
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import DecodeError

from fewshard_serve.core import Caller
from fewshard_serve.errors import CallerGone, DeadlineExceeded, MalformedRequest, ServeError, TooLarge
from fewshard_serve.fairness import Turns
from fewshard_serve.http.large_bodies import LARGE_BYTES, LargeBodies
from fewshard_serve.protocol.json_guard import MAX_VALUES
from fewshard_serve.protocol.limits import Limits

MAX_READING, MAX_READING_OF_ONE = 32, 8
"""Messages that arrive at a time, in all and of one caller. Their sizes are known once they are whole."""
OTHER_FIELDS = 10_000
FIELDS_PER_ITEM = 8
"""A message may have so many fields for each item that a request may hold, and `OTHER_FIELDS`."""

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
_FIXED_SIZES = {FieldDescriptor.TYPE_FLOAT: 4, FieldDescriptor.TYPE_DOUBLE: 8}
_MALFORMED = "the message is not a valid protobuf of its kind; use the client of the protocol"


class MessageReader:
    """Reads for all calls of one server. Messages that are waited for long have `turns` of their own."""

    def __init__(self, limits: Limits, bodies: LargeBodies, turns: Turns | None = None) -> None:
        self.limits = limits
        self.bodies = bodies
        self.turns = turns or Turns(MAX_READING, MAX_READING_OF_ONE)

    def reading(self, context: Any, caller: Caller) -> "Reading":
        """The message of one call. A caller without a name is told apart by address."""
        return Reading(self, context, caller if caller.name else Caller(address_of(context)))


class Reading:
    """A context manager: the message counts, while it is large, until the end of the block."""

    def __init__(self, reader: MessageReader, context: Any, caller: Caller) -> None:
        self._reader = reader
        self._context = context
        self._caller = caller
        self._share = reader.bodies.share(caller)

    def __enter__(self) -> "Reading":
        return self

    def __exit__(self, *_: object) -> None:
        self._share.release()

    async def messages(self, kind: Any) -> AsyncIterator[Any]:
        """Receive messages of the class `kind` until the client ends them. Raises as `message` does."""
        with suppress(CallerGone):
            while True:
                yield await self.message(kind)

    async def message(self, kind: Any) -> Any:
        """Receive the call's next message, of the class `kind`; most calls have one.

        Raises `Overloaded` if the process holds too many large bodies, `TooLarge` for more numbers or fields
        than a request may hold, `MalformedRequest`, `CallerGone`, `DeadlineExceeded` if it arrives slowly.
        """
        raw = await self._receive()
        self._share.hold(len(raw))
        return await self._reader.bodies.work(self._caller, len(raw), self._parsed, raw, kind)

    async def _receive(self) -> bytes:
        max_s = self._reader.limits.max_body_s
        try:
            async with self._reader.turns.taken(self._caller), asyncio.timeout(max_s):
                raw = await self._context.read()
        except TimeoutError:
            raise DeadlineExceeded(
                f"the message did not arrive within {max_s:g} s (max_body_s); send it faster"
            ) from None
        if raw is grpc.aio.EOF:
            raise CallerGone("the client ended the call without a message")
        found: bytes = raw
        return found

    def _parsed(self, raw: bytes, kind: Any) -> Any:
        if len(raw) >= LARGE_BYTES:
            max_fields = OTHER_FIELDS + FIELDS_PER_ITEM * self._reader.limits.max_items
            check_message(raw, kind.DESCRIPTOR, max_fields)
        try:
            return kind.FromString(raw)
        except DecodeError:
            raise MalformedRequest(_MALFORMED) from None


def alone(error: ServeError) -> ServeError:
    """The error without what it came of, which holds the message. Abort a call outside of `except` with it.

    The context of an aborted call refers to itself, and so would keep all until the next garbage collection.
    """
    error.__cause__ = error.__context__ = error.__traceback__ = None
    return error


def address_of(context: Any) -> str:
    """The client's address without scheme and port: `::1` for `ipv6:%5B::1%5D:5000`."""
    return unquote(str(context.peer()).partition(":")[2].rpartition(":")[0]).strip("[]")


def check_message(raw: bytes, descriptor: Descriptor, max_fields: int) -> None:
    """Raise `TooLarge` for more fields or numbers than a message may hold, before it is parsed."""
    _Guard(max_fields).walk(memoryview(raw), descriptor)


class _Guard:
    """Walks through a message as it is encoded, with all messages in it, and counts."""

    def __init__(self, max_fields: int) -> None:
        self._max_fields = max_fields
        self._num_fields = 0
        self._num_values = 0

    def walk(self, raw: memoryview, descriptor: Descriptor) -> None:
        at = 0
        while at < len(raw):
            self._num_fields += 1
            if self._num_fields > self._max_fields:
                raise TooLarge(
                    f"the message has over {self._max_fields} fields; split the request, and pack its "
                    "numbers or send raw_input_contents"
                )
            tag, at = _varint(raw, at)
            if tag & 7 == _BYTES:
                size, at = _varint(raw, at)
                self._look_into(raw[at : at + size], descriptor.fields_by_number.get(tag >> 3))
                at += size
            else:
                at = _behind(raw, at, tag & 7)

    def _look_into(self, content: memoryview, field: FieldDescriptor | None) -> None:
        if field is None or field.type in (FieldDescriptor.TYPE_STRING, FieldDescriptor.TYPE_BYTES):
            return
        if field.message_type is not None:
            self.walk(content, field.message_type)
            return
        self._num_values += _num_packed(content, _FIXED_SIZES.get(field.type, 0))
        if self._num_values > MAX_VALUES:
            raise TooLarge(
                f"the message holds over {MAX_VALUES} numbers; split the request or send raw_input_contents"
            )


def _num_packed(content: memoryview, size: int) -> int:
    """The numbers in a packed field: of `size` bytes each, or as varints, whose last byte is below 128."""
    if size:
        return len(content) // size
    return int(np.count_nonzero(np.frombuffer(content, dtype=np.int8) >= 0))


def _behind(raw: memoryview, at: int, wire_type: int) -> int:
    if wire_type == _VARINT:
        return _varint(raw, at)[1]
    if wire_type in (_FIXED32, _FIXED64):
        return at + (4 if wire_type == _FIXED32 else 8)
    raise MalformedRequest(_MALFORMED)  # a group, which no message here has


def _varint(raw: memoryview, at: int) -> tuple[int, int]:
    """The number that begins there, and the place behind it."""
    number = 0
    for shift, byte in zip(range(0, 70, 7), raw[at : at + 10], strict=False):
        number |= (byte & 0x7F) << shift
        if byte < 0x80:
            return number, at + shift // 7 + 1
    raise MalformedRequest(_MALFORMED)
