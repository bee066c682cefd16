"""Work that few may do at a time, in turns between callers; the transports parse large bodies so."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fewshard_serve.core import Caller
from fewshard_serve.fairness.fair_queue import FairQueue


class Turns:
    """`limit` at a time, `limit_of_one` of one caller. The others wait. It belongs to one event loop."""

    def __init__(self, limit: int, limit_of_one: int) -> None:
        self._limit = limit
        self._limit_of_one = limit_of_one
        self._waiting: FairQueue[tuple[Caller, asyncio.Future[None]]] = FairQueue()
        self._running: Counter[Caller] = Counter()
        self._num_running = 0

    @asynccontextmanager
    async def taken(self, caller: Caller, cost: float = 1.0) -> AsyncIterator[None]:
        """Wait for the caller's turn and hold it during the body. Cheap requests of others overtake dear
        ones."""
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.push(caller, (caller, turn), max(cost, 1.0))
        self._next()
        try:
            await turn  # which does not wait where the turn has come already
            yield
        finally:
            if not turn.cancelled():  # else it has given up waiting
                self._num_running -= 1
                self._running[caller] -= 1
                if not self._running[caller]:
                    del self._running[caller]
            self._next()

    def _next(self) -> None:
        while self._num_running < self._limit:
            found = self._waiting.pop_if(lambda caller: self._running[caller] < self._limit_of_one)
            if found is None:
                return
            caller, turn = found
            if not turn.done():  # else it has given up waiting
                self._num_running += 1
                self._running[caller] += 1
                turn.set_result(None)
