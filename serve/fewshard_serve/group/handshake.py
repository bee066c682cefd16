"""Accepts connections of workers and checks their hello frames. Called by `membership`."""

import hmac
import logging
import socket
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass

from fewshard_serve.group.transport import Frame, Link, WireError, receive_frame

logger = logging.getLogger(__name__)

HELLO_TIMEOUT_S = 300.0
"""A worker connects before it loads the network, which may take minutes from a slow disk."""


@dataclass(frozen=True, slots=True)
class Handshake:
    """A worker's hello frame.

    pid, host: its process, and the name of its machine.
    address: where other shards can reach it.
    device, device_id: the kind of its device, and the GPU's UUID ("" on a CPU).
    fingerprint: identifies its checkpoint.
    problem: why it cannot serve; "" if it can.
    """

    shard: int
    secret: str
    pid: int
    host: str
    address: str
    device: str
    device_id: str
    fingerprint: str
    problem: str


@dataclass(frozen=True, slots=True)
class Wanted:
    """What a worker must have in common with the leader. `host` is the leader's."""

    num_shards: int
    secret: str
    device: str
    fingerprint: str
    host: str

    def objection(self, hello: Handshake) -> str:
        """Return why this worker cannot take part; "" if it can."""
        where = f"shard {hello.shard} on {hello.host}"
        if hello.problem:
            return f"{where} cannot serve: {hello.problem}"
        if hello.device != self.device:
            return (
                f"{where} runs on {hello.device}, the leader on {self.device}; all shards of a group must be "
                "of one kind: set device, or keep this model to like nodes"
            )
        if hello.fingerprint != self.fingerprint:
            return (
                f"{where} has another checkpoint than the leader on {self.host}; "
                "copy the same one to every node, under the same path"
            )
        return ""


class Listener:
    """Listens on `address` only.

    `on_guest` is called on a thread of the connection. Its arguments are the hello, a link that is not
    started yet, and the objection to the worker.
    """

    def __init__(
        self,
        address: str,
        wanted: Wanted,
        on_guest: Callable[[Handshake, Link, str], None],
        send_timeout_s: float,
    ) -> None:
        family = socket.getaddrinfo(address, None)[0][0]
        self._listener = socket.create_server((address, 0), family=family, backlog=1024)
        self.port: int = self._listener.getsockname()[1]
        self._wanted = wanted
        self._on_guest = on_guest
        self._send_timeout_s = send_timeout_s
        threading.Thread(target=self._accept, name="group-door", daemon=True).start()

    def close(self) -> None:
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def _accept(self) -> None:
        while True:
            try:
                guest, _ = self._listener.accept()
            except OSError:
                return  # the listener was closed
            threading.Thread(target=self._greet, args=(guest,), name="group-greet", daemon=True).start()

    def _greet(self, guest: socket.socket) -> None:
        guest.settimeout(HELLO_TIMEOUT_S)
        try:
            hello = _read_hello(receive_frame(guest))
        except (WireError, TypeError) as error:
            logger.warning("somebody came in who is no worker: %s", error)
            guest.close()
            return
        is_invited = hmac.compare_digest(hello.secret, self._wanted.secret)
        if not is_invited or not 0 < hello.shard < self._wanted.num_shards:
            logger.warning("somebody came in without an invitation")
            guest.close()
            return
        link = Link(guest, send_timeout_s=self._send_timeout_s)
        self._on_guest(hello, link, self._wanted.objection(hello))


def _read_hello(frame: Frame) -> Handshake:
    if frame.kind != "hello":
        raise WireError(f"the first frame is a {frame.kind}")
    return Handshake(**frame.fields)
