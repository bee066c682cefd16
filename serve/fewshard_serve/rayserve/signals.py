"""Signals while a server runs: the first Ctrl-C or SIGTERM asks for a drain, the second ends at once; SIGHUP
asks for the configuration to be read again, unless it comes because the terminal was closed: that is a stop.
"""

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class StoppedAtOnce(BaseException):
    """Raised in the main thread by a second signal; no handler of ordinary errors shall catch it."""


class StopRequest:
    """Whether a stop was asked for, and by how many signals."""

    def __init__(self) -> None:
        self._asked = threading.Event()
        self._num_signals = 0
        self._is_reload_asked = False
        self._had_terminal = has_terminal()

    def wait(self, timeout_s: float | None = None) -> bool:
        """Wait for the first signal; False if none came in time."""
        return self._asked.wait(timeout_s)

    @property
    def is_asked(self) -> bool:
        return self._asked.is_set()

    def take_reload(self) -> bool:
        """Whether SIGHUP has come since the last call."""
        asked, self._is_reload_asked = self._is_reload_asked, False
        return asked

    def handle(self, number: int, _: FrameType | None) -> None:
        """The signal handler; runs in the main thread."""
        if number == signal.SIGHUP and has_terminal() >= self._had_terminal:
            self._is_reload_asked = True
            return
        self._num_signals += 1
        self._asked.set()
        if self._num_signals == 2:
            raise StoppedAtOnce
        if self._num_signals > 2:
            os._exit(128 + number)


def has_terminal() -> bool:
    """Whether a terminal controls this process, and is still open."""
    try:
        os.close(os.open("/dev/tty", os.O_RDWR | os.O_NOCTTY))
    except OSError:
        return False
    return True


@contextmanager
def stop_request() -> Iterator[StopRequest]:
    """Handle the signals inside, and put the former handlers back."""
    request = StopRequest()
    former = {number: signal.getsignal(number) for number in SIGNALS}
    listen(request)
    try:
        yield request
    finally:
        for number, handler in former.items():
            signal.signal(number, handler)


def listen(request: StopRequest) -> None:
    """Install the handlers; again after `ray.init`, which installs its own for SIGTERM."""
    for number in SIGNALS:
        signal.signal(number, request.handle)
