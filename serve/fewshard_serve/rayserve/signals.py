"""Signal handling, and an event loop in a thread. `launch` uses both.

The first Ctrl-C or SIGTERM requests a drain; the second one ends the process at once. SIGHUP requests to read
the configuration again, unless it is sent because the terminal was closed: then it requests a stop. Serve's
handles belong to the event loop that first used them, so all calls run on the loop of `LoopThread`.
"""

import asyncio
import os
import signal
import threading
from collections.abc import Coroutine, Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType
from typing import Any, TypeVar

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class StoppedAtOnce(BaseException):
    """Raised in the main thread by a second signal. Not an `Exception`, so that ordinary handlers do not
    catch it."""


class StopRequest:
    """Records whether a stop was requested, and by how many signals."""

    def __init__(self) -> None:
        self._asked = threading.Event()
        self._num_signals = 0
        self._is_reload_asked = False
        self._had_terminal = has_terminal()

    def wait(self, timeout_s: float | None = None) -> bool:
        """Wait for the first signal. Return False on time-out."""
        return self._asked.wait(timeout_s)

    @property
    def is_asked(self) -> bool:
        return self._asked.is_set()

    def take_reload(self) -> bool:
        """Return whether SIGHUP has arrived since the last call."""
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
    """Return whether this process has a controlling terminal that is open."""
    try:
        os.close(os.open("/dev/tty", os.O_RDWR | os.O_NOCTTY))
    except OSError:
        return False
    return True


@contextmanager
def stop_request() -> Iterator[StopRequest]:
    """Handle the signals in the body, and restore the previous handlers afterwards."""
    request = StopRequest()
    former = {number: signal.getsignal(number) for number in SIGNALS}
    listen(request)
    try:
        yield request
    finally:
        for number, handler in former.items():
            signal.signal(number, handler)


def listen(request: StopRequest) -> None:
    """Install the handlers. Call it again after `ray.init`, which installs its own for SIGTERM."""
    for number in SIGNALS:
        signal.signal(number, request.handle)


ResultT = TypeVar("ResultT")


class LoopThread:
    """Runs coroutines for a caller that has no event loop."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="fewshard-calls", daemon=True)

    def __enter__(self) -> "LoopThread":
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(1.0)

    def run(self, work: Coroutine[Any, Any, ResultT], timeout_s: float) -> ResultT:
        """Return the coroutine's result. On time-out cancel it and raise `TimeoutError`."""
        limited = asyncio.wait_for(work, timeout_s)
        return asyncio.run_coroutine_threadsafe(limited, self._loop).result()
