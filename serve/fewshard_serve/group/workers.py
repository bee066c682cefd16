"""The workers the leader is connected to: their links, replies and heartbeats. Called by `leader`."""

import logging
import queue
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from fewshard_serve.group.handshake import Handshake
from fewshard_serve.group.transport import PING, Frame, Link, WireError

logger = logging.getLogger(__name__)

PINGS_A_TIMEOUT = 6


@dataclass(slots=True, eq=False)
class Peer:
    """One connected worker; `replies` are its answers to steps, and None once it has gone."""

    hello: Handshake
    link: Link
    replies: "queue.SimpleQueue[Frame | None]" = field(default_factory=queue.SimpleQueue)

    def send(self, frame: Frame) -> bool:
        """False where the worker has gone, which its link tells by itself, or reads nothing."""
        try:
            self.link.send(frame)
        except WireError:
            self.link.close()
            return False
        return True

    def reply_to(self, step: int, until: float) -> Frame | None:
        """What it answers to this step; None if it has gone, or says nothing before the time `until`."""
        try:
            while True:
                frame = self.replies.get(timeout=max(0.0, until - time.monotonic()))
                if frame is None:
                    self.replies.put(None)  # for whoever asks next
                    return None
                if frame.fields["step"] == step:
                    return frame
        except queue.Empty:
            return None


class Heartbeat:
    """Pings the peers that `peers` lists, and reports those that have been silent for `timeout_s`.

    A worker answers on a thread of its own, so one that is merely busy is not silent.
    """

    def __init__(
        self, peers: Callable[[], list[Peer]], on_silent: Callable[[Peer], None], timeout_s: float
    ) -> None:
        self._peers = peers
        self._on_silent = on_silent
        self._timeout_s = timeout_s
        self._stopped = threading.Event()
        threading.Thread(target=self._main, name="group-heartbeat", daemon=True).start()

    def stop(self) -> None:
        self._stopped.set()

    def _main(self) -> None:
        pause_s = self._timeout_s / PINGS_A_TIMEOUT
        looked_at = time.monotonic()
        while not self._stopped.wait(pause_s):
            now = time.monotonic()
            # Who slept himself must not call others silent.
            was_awake, looked_at = now - looked_at < 3 * pause_s, now
            for peer in self._peers():
                if was_awake and now - peer.link.last_heard_at > self._timeout_s:
                    self._on_silent(peer)
                else:
                    peer.send(PING)
