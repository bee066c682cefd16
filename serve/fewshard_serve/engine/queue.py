"""The queue of one model, and the futures of the requests whose items wait in it.

`Queue` is a plain data structure: the runner holds the lock and passes in the time. The engine creates a
`RequestFuture` for each request and settles it item by item on the event loop.
"""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from fewshard_core.values import Item
from fewshard_serve.core import ANYBODY, Caller
from fewshard_serve.errors import ServeError, UnusableItem
from fewshard_serve.fairness import FairQueue

Outcome = NDArray[np.float32] | ServeError
"""One item's fp32 logits [num_labels], or the error that prevented them."""


class RequestHandle(Protocol):
    """The request that an item belongs to."""

    @property
    def is_gone(self) -> bool:
        """True once nobody waits for the answer. The runner's thread reads it."""
        ...

    def settle(self, resolution: "Resolution") -> None:
        """Record the outcome of one item of the request."""
        ...


@dataclass(frozen=True, slots=True, eq=False)
class Entry:
    """One queued item. Times are seconds on the runner's clock.

    item: the prepared input.
    caller: the request that the item belongs to.
    index: the item's position in the request.
    asker: whose turn it uses in the fair queue.
    is_probe: the engine asks it itself, and it counts as no work.
    """

    item: Item
    caller: RequestHandle
    index: int
    enqueued_at: float
    deadline_at: float
    asker: Caller = ANYBODY
    is_probe: bool = False


@dataclass(frozen=True, slots=True)
class Resolution:
    """One item's outcome on its way to its request.

    `queue_s`, `infer_s`: seconds in the queue and in the forward pass.
    `is_degraded`: some experts were missing when it ran.
    `exchange_s`: the part of `infer_s` that shards took beyond their own arithmetic.
    """

    entry: Entry
    outcome: Outcome
    queue_s: float
    infer_s: float
    is_degraded: bool = False
    exchange_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Cut:
    """What one call of `Queue.cut` took off the queue.

    batch: the entries to run.
    expired: dropped entries whose deadline had passed.
    abandoned: dropped entries whose caller had gone.
    """

    batch: list[Entry] = field(default_factory=list)
    expired: list[Entry] = field(default_factory=list)
    abandoned: list[Entry] = field(default_factory=list)


class Queue:
    """Fair between callers; first in, first out for each caller.

    The length and `num_tokens` include entries whose callers have gone, until `cut` reaches and drops them.
    """

    def __init__(self) -> None:
        self._entries: FairQueue[Entry] = FairQueue()
        self.num_tokens = 0

    def __len__(self) -> int:
        return len(self._entries)

    @property
    def head_enqueued_at(self) -> float:
        """When the next entry was queued. The queue must not be empty."""
        return self._entries.peek().enqueued_at

    def extend(self, entries: Sequence[Entry]) -> None:
        for entry in entries:
            num_tokens = entry.item.num_tokens
            self._entries.push(entry.asker, entry, max(1, num_tokens))
            self.num_tokens += num_tokens

    def take_all(self) -> Cut:
        """Take all entries, whatever their deadlines."""
        cut = Cut()
        while self._entries:
            cut.batch.append(self._entries.pop(is_served=False))
        self.num_tokens = 0
        return cut

    def cut(self, max_tokens: int, max_items: int, now: float) -> Cut:
        """Take the next batch in order, within both limits.

        An item larger than `max_tokens` forms a batch of its own. The order never changes to fill a batch.
        """
        cut = Cut()
        room = max_tokens
        while self._entries and len(cut.batch) < max_items:
            entry = self._entries.peek()
            if (dropped := _dropped(entry, cut, now)) is None:
                if cut.batch and entry.item.num_tokens > room:
                    break
                room -= entry.item.num_tokens
                cut.batch.append(entry)
            else:
                dropped.append(entry)
            self._entries.pop(is_served=dropped is None)
            self.num_tokens -= entry.item.num_tokens
        return cut


def _dropped(entry: Entry, cut: Cut, now: float) -> list[Entry] | None:
    """The list of `cut` that the entry belongs to if it must not run, else None."""
    if entry.caller.is_gone:
        return cut.abandoned
    return cut.expired if entry.deadline_at <= now else None


@dataclass(frozen=True, slots=True)
class Answer:
    """The answer to one request.

    logits: fp32 [num_items, num_labels].
    queue_s, infer_s, exchange_s: the longest time of any of its items, in seconds.
    is_degraded: whether any of its items ran without some experts.
    """

    logits: NDArray[np.float32]
    queue_s: float
    infer_s: float
    is_degraded: bool = False
    exchange_s: float = 0.0


class RequestFuture:
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
        # If the future is done, the request was cancelled, timed out or failed: skip its other items.
        return self.answer.done()

    def settle(self, resolution: Resolution) -> None:
        if self.answer.done():
            return
        self._queue_s = max(self._queue_s, resolution.queue_s)
        self._infer_s = max(self._infer_s, resolution.infer_s)
        self._is_degraded |= resolution.is_degraded
        self._exchange_s = max(self._exchange_s, resolution.exchange_s)
        index, outcome = resolution.entry.index, resolution.outcome
        if isinstance(outcome, ServeError):
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


def _of_item(index: int, error: ServeError) -> ServeError:
    """Replace the item's index in the batch by its index in the request, which the caller knows."""
    return UnusableItem(index, error.reason) if isinstance(error, UnusableItem) else error
