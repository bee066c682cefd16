"""Frames between leader and workers: a JSON header and bytes, each with its length before it. No pickle.

Called by `link`. Both ends run the same version, so there is none in the frames.
"""

import json
import socket
import struct
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

_LENGTHS = struct.Struct("!II")
MAX_HEADER_BYTES = 64 * 2**20
MAX_BODY_BYTES = 256 * 2**20


class WireError(Exception):
    """The other end has gone, or sent what is no frame."""


@dataclass(frozen=True, slots=True)
class Frame:
    """`kind` says what it is; `fields` are JSON values, `body` numbers as bytes."""

    kind: str
    fields: Mapping[str, Any] = field(default_factory=dict)
    body: bytes = b""


def send_frame(sock: socket.socket, frame: Frame) -> None:
    """Raises WireError where the other end has gone or takes nothing within the socket's time-out."""
    header = json.dumps({"kind": frame.kind, **frame.fields}, separators=(",", ":")).encode()
    try:
        sock.sendall(b"".join((_LENGTHS.pack(len(header), len(frame.body)), header, frame.body)))
    except OSError as error:
        raise WireError(f"cannot send: {error}") from error


def receive_frame(sock: socket.socket) -> Frame:
    """Wait for one frame. Raises WireError, "closed" where the other end has ended the connection."""
    header_bytes, body_bytes = _LENGTHS.unpack(_receive(sock, _LENGTHS.size))
    if header_bytes > MAX_HEADER_BYTES or body_bytes > MAX_BODY_BYTES:
        raise WireError(f"a frame of {header_bytes} + {body_bytes} bytes is none of ours")
    header, body = _receive(sock, header_bytes), _receive(sock, body_bytes)
    try:
        fields = json.loads(header)
        return Frame(fields.pop("kind"), fields, body)
    except (ValueError, AttributeError, KeyError, TypeError) as error:
        raise WireError(f"a header that is none: {error!r}") from error


def _receive(sock: socket.socket, num_bytes: int) -> bytes:
    buffer = bytearray(num_bytes)
    view = memoryview(buffer)
    while view:
        try:
            count = sock.recv_into(view)
        except OSError as error:
            raise WireError(f"cannot receive: {error}") from error
        if not count:
            raise WireError("closed")
        view = view[count:]
    return bytes(buffer)
