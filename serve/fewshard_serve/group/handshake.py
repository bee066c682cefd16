"""Accepts connections of workers and checks their hello frames. Called by `membership`."""

import hmac
import logging
import socket
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass

from fewshard_serve.group.transport import Frame, Link, WireError, receive_frame

logger = logging.getLogger(__name__)

HELLO_TIMEOUT_S = 300.0
"""A worker connects before it loads the network, which may take minutes from a slow disk."""
MAX_HELLO_BYTES = 64 * 1024
"""Whoever connects may send a frame of this size before it is known to be a worker."""
GUESTS_PER_SHARD = 4
"""How many connections for each shard may be open at a time without a hello; each has a thread."""
ACCEPT_AGAIN_S = 0.1


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
        self._is_closed = False
        self._places = threading.Semaphore(GUESTS_PER_SHARD * wanted.num_shards)
        self._wanted = wanted
        self._on_guest = on_guest
        self._send_timeout_s = send_timeout_s
        threading.Thread(target=self._accept, name="group-door", daemon=True).start()

    def close(self) -> None:
        self._is_closed = True
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def _accept(self) -> None:
        while not self._is_closed:
            try:
                guest, _ = self._listener.accept()
            except OSError as error:  # it was closed, or there is no free file
                if not self._is_closed:
                    logger.warning("a worker cannot be let in: %s", error)
                    time.sleep(ACCEPT_AGAIN_S)
                continue
            if not self._places.acquire(blocking=False):
                logger.warning("as many have come in as may be asked who they are; one more is turned away")
                guest.close()
                continue
            threading.Thread(target=self._ask, args=(guest,), name="group-greet", daemon=True).start()

    def _ask(self, guest: socket.socket) -> None:
        """Ask a guest who it is, and close the connection if it is no worker of this group."""
        try:
            self._greet(guest)
        except (WireError, TypeError) as error:
            logger.warning("somebody came in who is no worker: %s", error)
            guest.close()
        finally:
            self._places.release()

    def _greet(self, guest: socket.socket) -> None:
        guest.settimeout(HELLO_TIMEOUT_S)
        hello = _read_hello(receive_frame(guest, MAX_HELLO_BYTES, max_body_bytes=0))
        is_invited = hmac.compare_digest(hello.secret, self._wanted.secret)
        if not is_invited or not 0 < hello.shard < self._wanted.num_shards:
            raise WireError("it has no invitation")
        link = Link(guest, send_timeout_s=self._send_timeout_s)
        self._on_guest(hello, link, self._wanted.objection(hello))


def _read_hello(frame: Frame) -> Handshake:
    if frame.kind != "hello":
        raise WireError(f"the first frame is a {frame.kind}")
    return Handshake(**frame.fields)
