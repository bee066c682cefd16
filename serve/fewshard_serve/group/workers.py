"""The workers that the leader is connected to: links, replies and heartbeats. Called by `leader`."""

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
    """One connected worker.

    replies: its answers to steps; None marks the end of the connection.
    """

    hello: Handshake
    link: Link
    replies: "queue.SimpleQueue[Frame | None]" = field(default_factory=queue.SimpleQueue)

    def send(self, frame: Frame) -> bool:
        """Send a frame. Return False if the worker is gone (its link reports that too) or does not read."""
        try:
            self.link.send(frame)
        except WireError:
            self.link.close()
            return False
        return True

    def reply_to(self, step: int, until: float) -> Frame | None:
        """Return the worker's answer to this step; None if it is gone, or silent until the monotonic time
        `until`."""
        try:
            while True:
                frame = self.replies.get(timeout=max(0.0, until - time.monotonic()))
                if frame is None:
                    self.replies.put(None)  # for the next caller
                    return None
                if frame.fields["step"] == step:
                    return frame
        except queue.Empty:
            return None


class Heartbeat:
    """Pings the peers that `peers` returns, and reports those that were silent for `timeout_s` seconds.

    Workers answer pings on a separate thread, so a busy worker is not silent.
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
            # If this process was suspended, its own clock jumped: skip the check rather than declare every
            # peer dead.
            was_awake, looked_at = now - looked_at < 3 * pause_s, now
            for peer in self._peers():
                if was_awake and now - peer.link.last_heard_at > self._timeout_s:
                    self._on_silent(peer)
                else:
                    peer.send(PING)
