"""One event loop in a thread, since Serve's handles belong to the loop that first used them; for `launch`."""

import asyncio
import threading
from collections.abc import Coroutine
from types import TracebackType
from typing import Any, TypeVar

ResultT = TypeVar("ResultT")


class LoopThread:
    """Runs coroutines for a caller that has no loop of its own."""

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
        """The coroutine's result; raises `TimeoutError`, and cancels it, where it takes longer."""
        limited = asyncio.wait_for(work, timeout_s)
        return asyncio.run_coroutine_threadsafe(limited, self._loop).result()
