"""One TCP connection between the leader and a worker, read by a thread of its own."""

import socket
import struct
import threading
import time
from collections.abc import Callable
from contextlib import suppress

from fewshard_serve.group.wire import Frame, WireError, receive_frame, send_frame

PING, PONG = Frame("ping"), Frame("pong")


class Link:
    """Answers pings by itself, passes every other frame to `on_frame`, and says once when it has ended.

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
        """Begin to read."""
        arguments = (on_frame, on_end)
        threading.Thread(target=self._read, args=arguments, name=f"link-{name}", daemon=True).start()

    def send(self, frame: Frame) -> None:
        """Raises WireError where the other end has gone or does not read."""
        with self._sending:
            send_frame(self._sock, frame)

    def close(self) -> None:
        """End the connection; the reading thread says so."""
        with suppress(OSError):  # it may have ended already
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
            with self._sending:  # its number may be another file's once it is closed
                self._sock.close()
            on_end(str(error))


def _timeval(seconds: float) -> bytes:
    """0 means for ever."""
    return struct.pack("ll", int(seconds), int(seconds % 1 * 1e6))
