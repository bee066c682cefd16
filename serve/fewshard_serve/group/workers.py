"""The workers that the leader is connected to: links, replies and heartbeats; and who watches the leader."""

import logging
import os
import queue
import signal
import socket
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field

from fewshard_serve.group.handshake import Handshake
from fewshard_serve.group.transport import PING, Frame, Link, WireError

logger = logging.getLogger(__name__)

PINGS_A_TIMEOUT = 6
LOOK_S = 0.05
"""Seconds between two looks at whether a process is stopped; it counts as such at the second one in a row."""


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
    """Pings the peers that `peers` returns, and reports those that are stopped, or silent for `timeout_s`.

    Workers answer pings on a separate thread, so a busy worker is not silent. That one on this machine is
    stopped by a signal is seen long before its silence would tell.
    """

    def __init__(
        self, peers: Callable[[], list[Peer]], report: Callable[[Peer, str], None], timeout_s: float
    ) -> None:
        self._peers = peers
        self._report = report
        self._timeout_s = timeout_s
        self._host = socket.gethostname()
        self._stopped_before: set[Peer] = set()
        self._stopped = threading.Event()
        threading.Thread(target=self._main, name="group-heartbeat", daemon=True).start()

    def stop(self) -> None:
        self._stopped.set()

    def _main(self) -> None:
        pause_s = self._timeout_s / PINGS_A_TIMEOUT
        looked_at = pinged_at = time.monotonic()
        while not self._stopped.wait(LOOK_S):
            now = time.monotonic()
            # If this process was suspended, its own clock jumped: skip the checks rather than declare every
            # peer dead.
            was_awake, looked_at = now - looked_at < 3 * pause_s, now
            if was_awake:
                self._look_for_stopped()
            if now - pinged_at >= pause_s:
                pinged_at = now
                self._ping(now, was_awake)

    def _look_for_stopped(self) -> None:
        """Report peers that were stopped the last time, too."""
        local = [peer for peer in self._peers() if peer.hello.host == self._host]
        stopped = {peer for peer in local if is_stopped(peer.hello.pid)}
        for peer in stopped & self._stopped_before:
            self._report(peer, "it is stopped")
        self._stopped_before = stopped

    def _ping(self, now: float, was_awake: bool) -> None:
        for peer in self._peers():
            if was_awake and now - peer.link.last_heard_at > self._timeout_s:
                self._report(peer, f"silent for {self._timeout_s:g} s")
            else:
                peer.send(PING)


def is_stopped(pid: int) -> bool:
    """Whether a process of this machine is stopped by a signal, so that it does nothing until another one."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            return file.read().rpartition(b") ")[2].startswith(b"T")
    except OSError:  # it has ended, or there is no /proc
        return False


def kill_if_stopped(pid: int, until: threading.Event) -> None:
    """Watch a process of this machine until the event, and kill it once it is stopped."""
    was_stopped = False
    while not until.wait(LOOK_S):
        now = is_stopped(pid)
        if now and was_stopped:
            logger.warning("process %d is stopped; it is ended, so that another one can take its place", pid)
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
            return
        was_stopped = now
