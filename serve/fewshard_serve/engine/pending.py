"""One request that waits for its items; made by the engine, settled item by item on the event loop."""

import asyncio
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fewshard_serve.engine.queue import Outcome
from fewshard_serve.errors import FewshardError, UnusableItem


@dataclass(frozen=True, slots=True)
class Answer:
    """fp32 logits [num_items, num_labels]; the longest times of the request's items; whether one of them ran
    without some experts."""

    logits: NDArray[np.float32]
    queue_s: float
    infer_s: float
    is_degraded: bool = False
    exchange_s: float = 0.0


class Pending:
    """Collects the outcomes of `num_items` items. The first failure fails the request and drops the rest."""

    def __init__(self, num_items: int) -> None:
        self.answer: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        self._rows: list[NDArray[np.float32] | None] = [None] * num_items
        self._num_left = num_items
        self._queue_s = 0.0
        self._infer_s = 0.0
        self._is_degraded = False
        self._exchange_s = 0.0

    @property
    def is_gone(self) -> bool:
        # A future that is done was cancelled, timed out or failed: its other items need not run.
        return self.answer.done()

    def settle(
        self,
        index: int,
        outcome: Outcome,
        queue_s: float,
        infer_s: float,
        is_degraded: bool = False,
        exchange_s: float = 0.0,
    ) -> None:
        if self.answer.done():
            return
        self._queue_s = max(self._queue_s, queue_s)
        self._infer_s = max(self._infer_s, infer_s)
        self._is_degraded |= is_degraded
        self._exchange_s = max(self._exchange_s, exchange_s)
        if isinstance(outcome, FewshardError):
            self.answer.set_exception(_of_item(index, outcome))
        else:
            self._keep(index, outcome)

    def _keep(self, index: int, row: NDArray[np.float32]) -> None:
        assert self._rows[index] is None, f"item {index} was answered twice. This is a bug."
        self._rows[index] = row
        self._num_left -= 1
        if self._num_left == 0:
            rows = [row for row in self._rows if row is not None]
            times = self._queue_s, self._infer_s
            answer = Answer(np.stack(rows), *times, self._is_degraded, self._exchange_s)
            self.answer.set_result(answer)


def _of_item(index: int, error: FewshardError) -> FewshardError:
    """A model numbers the items of its batch; the caller needs the place in the request."""
    return UnusableItem(index, error.reason) if isinstance(error, UnusableItem) else error
