"""The queue of one model: a plain data structure that the runner locks, and to which time is passed in."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from fewshard_serve.core import ANYBODY, Item
from fewshard_serve.core import Caller as Asker
from fewshard_serve.engine.fair import FairQueue
from fewshard_serve.errors import FewshardError

Outcome = NDArray[np.float32] | FewshardError
"""One item's fp32 logits [num_labels], or why there are none."""


class Caller(Protocol):
    """The request that an item belongs to."""

    @property
    def is_gone(self) -> bool:
        """True once nobody waits for the answer; read from the runner's thread."""
        ...

    def settle(
        self,
        index: int,
        outcome: Outcome,
        queue_s: float,
        infer_s: float,
        is_degraded: bool = False,
        exchange_s: float = 0.0,
    ) -> None:
        """Take the answer for the item at `index`."""
        ...


@dataclass(frozen=True, slots=True, eq=False)
class Entry:
    """One queued item; times are seconds on the runner's clock."""

    item: Item
    caller: Caller
    index: int
    enqueued_at: float
    deadline_at: float
    asker: Asker = ANYBODY


@dataclass(frozen=True, slots=True)
class Cut:
    """What one cut took off the queue: the batch to run, and what was dropped on the way to it."""

    batch: list[Entry] = field(default_factory=list)
    expired: list[Entry] = field(default_factory=list)
    abandoned: list[Entry] = field(default_factory=list)


class Queue:
    """Fair between callers, first in first out for each. The totals include entries whose callers have gone,
    until a cut meets them.
    """

    def __init__(self) -> None:
        self._entries: FairQueue[Entry] = FairQueue()
        self.num_tokens = 0

    def __len__(self) -> int:
        return len(self._entries)

    @property
    def head_enqueued_at(self) -> float:
        """When the entry came whose turn it is; the queue must not be empty."""
        return self._entries.peek().enqueued_at

    def extend(self, entries: Sequence[Entry]) -> None:
        for entry in entries:
            num_tokens = entry.item.num_tokens
            self._entries.push(entry.asker, entry, max(1, num_tokens))
            self.num_tokens += num_tokens

    def take_all(self) -> Cut:
        """Everything, whatever its deadline; nothing is left."""
        cut = Cut()
        while self._entries:
            cut.batch.append(self._entries.pop(is_served=False))
        self.num_tokens = 0
        return cut

    def cut(self, max_tokens: int, max_items: int, now: float) -> Cut:
        """Take the next batch in order, within both limits.

        An item that alone passes `max_tokens` goes alone. Order is never traded for a fuller batch.
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
    """The list of `cut` to which an entry that must not run belongs."""
    if entry.caller.is_gone:
        return cut.abandoned
    return cut.expired if entry.deadline_at <= now else None
