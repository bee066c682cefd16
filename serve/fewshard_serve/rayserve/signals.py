"""Signal handling, and threads for calls that may never return. `launch` uses them.

The first Ctrl-C or SIGTERM requests a drain; the second one ends the server at once. SIGHUP requests to read
the configuration again, unless it is sent because the terminal was closed: then it requests a stop. Python
runs signal handlers in the main thread only, between two of its instructions, so that thread makes no call
that may block: `supervisor` keeps it free.

Serve's handles belong to the event loop that first used them, so all calls run on the loop of `LoopThread`.
"""

import asyncio
import os
import queue
import signal
import threading
import time
from collections.abc import Callable, Coroutine, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from types import FrameType, TracebackType
from typing import Any, TypeVar

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
LOOP_MARGIN_S = 1.0


class StopRequest:
    """Records whether a stop was requested, when, and by how many signals."""

    def __init__(self) -> None:
        self._asked = threading.Event()
        self._asked_at = 0.0
        self._num_signals = 0
        self._is_reload_asked = False
        self._had_terminal = has_terminal()

    def wait(self, timeout_s: float | None = None) -> bool:
        """Wait for the first signal. Return False on time-out."""
        return self._asked.wait(timeout_s)

    @property
    def is_asked(self) -> bool:
        return self._asked.is_set()

    @property
    def is_at_once(self) -> bool:
        """Whether a second signal has arrived."""
        return self._num_signals >= 2

    @property
    def asked_for_s(self) -> float:
        """Seconds since the first signal; 0 before."""
        return time.monotonic() - self._asked_at if self._asked_at else 0.0

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
        if self._num_signals > 2:
            os._exit(128 + number)
        self._asked_at = self._asked_at or time.monotonic()
        self._asked.set()


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
    """Install the handlers. Call it again after a `ray.init` in the main thread, which installs its own."""
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

    def start(self, work: Coroutine[Any, Any, ResultT]) -> Future[ResultT]:
        """Start the coroutine. Return its result to be; cancelling that cancels the coroutine."""
        return asyncio.run_coroutine_threadsafe(work, self._loop)

    def run(self, work: Coroutine[Any, Any, ResultT], timeout_s: float) -> ResultT:
        """Return the coroutine's result. On time-out cancel it and raise `TimeoutError`.

        A call within it that blocks the loop is left behind.
        """
        limited = asyncio.wait_for(work, timeout_s)
        return asyncio.run_coroutine_threadsafe(limited, self._loop).result(timeout_s + LOOP_MARGIN_S)


class CallThread:
    """Makes calls that may block for ever, in their order, in a thread that is left behind at the end."""

    def __init__(self) -> None:
        self._calls: queue.SimpleQueue[tuple[Future[Any], Callable[[], Any]]] = queue.SimpleQueue()
        threading.Thread(target=self._work, name="fewshard-blocking-calls", daemon=True).start()

    def start(self, call: Callable[[], ResultT]) -> Future[ResultT]:
        """Make a call once those before it have returned. Return its result to be."""
        future: Future[ResultT] = Future()
        self._calls.put((future, call))
        return future

    def run(self, call: Callable[[], ResultT], timeout_s: float) -> ResultT:
        """Return what the call returns. On time-out raise `TimeoutError`; it is not made if not begun yet."""
        future = self.start(call)
        try:
            return future.result(timeout_s)
        except TimeoutError:
            future.cancel()
            raise

    def _work(self) -> None:
        while True:
            future, call = self._calls.get()
            if not future.set_running_or_notify_cancel():
                continue
            try:
                future.set_result(call())
            except BaseException as error:  # noqa: BLE001  it is raised where the call was asked for
                future.set_exception(error)
