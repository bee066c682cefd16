"""Messages between leader and workers: frames, and a TCP connection that a thread reads.

A frame is a JSON header and binary data, each preceded by its length; nothing is pickled. Both ends run the
same version, so frames carry no version. `leader`, `membership`, `handshake` and `worker` use it.
"""

import json
import socket
import struct
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from fewshard_core.errors import FewshardError

_LENGTHS = struct.Struct("!II")
MAX_HEADER_BYTES = 64 * 2**20
MAX_BODY_BYTES = 256 * 2**20


class WireError(FewshardError):
    """The other end has closed the connection, or sent something that is not a frame."""


@dataclass(frozen=True, slots=True)
class Frame:
    """One message.

    kind: its type.
    fields: JSON values.
    body: numbers as bytes.
    """

    kind: str
    fields: Mapping[str, Any] = field(default_factory=dict)
    body: bytes = b""


def send_frame(sock: socket.socket, frame: Frame) -> None:
    """Raise WireError if the other end is gone, or accepts nothing within the socket's time-out."""
    header = json.dumps({"kind": frame.kind, **frame.fields}, separators=(",", ":")).encode()
    try:
        sock.sendall(b"".join((_LENGTHS.pack(len(header), len(frame.body)), header, frame.body)))
    except OSError as error:
        raise WireError(f"cannot send: {error}") from error


def receive_frame(
    sock: socket.socket, max_header_bytes: int = MAX_HEADER_BYTES, max_body_bytes: int = MAX_BODY_BYTES
) -> Frame:
    """Wait for one frame. Raises WireError, with "closed" if the other end closed the connection.

    A frame that says it is larger than allowed is not read.
    """
    header_bytes, body_bytes = _LENGTHS.unpack(_receive(sock, _LENGTHS.size))
    if header_bytes > max_header_bytes or body_bytes > max_body_bytes:
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


PING, PONG = Frame("ping"), Frame("pong")


class Link:
    """A connection. It answers pings itself, passes other frames to `on_frame`, and calls `on_end` once at
    its end.

    Both callbacks run on the link's thread. `send` may be called from any thread.
    """

    def __init__(self, sock: socket.socket, *, send_timeout_s: float, receive_timeout_s: float = 0.0) -> None:
        sock.settimeout(None)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, _timeval(send_timeout_s))
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, _timeval(receive_timeout_s))
        self._sock = sock
        self._sending = threading.Lock()
        self.last_heard_at = time.monotonic()

    def start(self, on_frame: Callable[[Frame], None], on_end: Callable[[str], None], name: str) -> None:
        """Start the reading thread."""
        arguments = (on_frame, on_end)
        threading.Thread(target=self._read, args=arguments, name=f"link-{name}", daemon=True).start()

    def send(self, frame: Frame) -> None:
        """Raise WireError if the other end is gone or does not read."""
        with self._sending:
            send_frame(self._sock, frame)

    def close(self) -> None:
        """End the connection. The reading thread then calls `on_end`."""
        with suppress(OSError):  # the connection may have ended already
            self._sock.shutdown(socket.SHUT_RDWR)

    def _read(self, on_frame: Callable[[Frame], None], on_end: Callable[[str], None]) -> None:
        try:
            while True:
                frame = receive_frame(self._sock)
                self.last_heard_at = time.monotonic()
                if frame.kind == PING.kind:
                    self.send(PONG)
                elif frame.kind != PONG.kind:
                    on_frame(frame)
        except WireError as error:
            with self._sending:  # after closing, another file may get the same descriptor
                self._sock.close()
            on_end(str(error))


def _timeval(seconds: float) -> bytes:
    """Pack seconds as a C timeval. 0 means no time-out."""
    return struct.pack("ll", int(seconds), int(seconds % 1 * 1e6))
