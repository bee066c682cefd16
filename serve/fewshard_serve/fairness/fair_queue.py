"""A queue that is fair between callers: one caller's backlog does not delay the others.

Start-time fair queueing (Goyal, Vin, Cheng: "Start-time Fair Queueing", IEEE/ACM Transactions on Networking
5(5), 1997): an entry's tag is the virtual time at which its caller's turn begins, and the entry with the
smallest tag is next. While two callers both have entries waiting, the work done for them differs by at most
one entry of each, however much either has sent.

The request queue and the preparer use it. It has no lock of its own.
"""

import heapq
from collections import deque
from collections.abc import Callable
from typing import Generic, TypeVar

from fewshard_serve.core import Caller

EntryT = TypeVar("EntryT")

URGENT_WEIGHT = 8
"""The weight of an urgent caller; others have 1. Strict priority would let urgent callers starve the rest."""


class _Flow(Generic[EntryT]):
    """One caller's entries, in order of arrival, each with its cost."""

    __slots__ = ("caller", "entries", "rank", "tag", "weight")

    def __init__(self, caller: Caller, tag: float) -> None:
        self.caller = caller
        self.rank = 0 if caller.is_urgent else 1
        self.weight = URGENT_WEIGHT if caller.is_urgent else 1
        self.tag = tag
        self.entries: deque[tuple[EntryT, float]] = deque()


class FairQueue(Generic[EntryT]):
    """Entries by caller. A single caller is served first in, first out."""

    def __init__(self) -> None:
        self._flows: dict[tuple[Caller, str], _Flow[EntryT]] = {}
        # (tag, rank, order of arrival, flow): exactly one for each flow that has entries
        self._heap: list[tuple[float, int, int, _Flow[EntryT]]] = []
        self._num_entries = 0
        self._num_turns = 0
        self._virtual_time = 0.0

    def __len__(self) -> int:
        return self._num_entries

    def push(self, caller: Caller, entry: EntryT, cost: float, flow: str = "") -> None:
        """Add an entry behind the caller's other entries of the same flow.

        `cost` may have any unit but must be positive.
        """
        own = self._flows.get((caller, flow))
        if own is None:
            own = self._flows[caller, flow] = _Flow(caller, self._virtual_time)
        if not own.entries:
            own.tag = max(own.tag, self._virtual_time)
            self._wait(own)
        own.entries.append((entry, cost))
        self._num_entries += 1

    def peek(self) -> EntryT:
        """The next entry. The queue must not be empty."""
        return self._heap[0][3].entries[0][0]

    def pop(self, is_served: bool = True) -> EntryT:
        """Take the next entry. A dropped entry (`is_served` false) costs its caller nothing."""
        entry = self._take(is_served)
        self._forget()
        return entry

    def pop_if(self, may_run: Callable[[Caller], bool]) -> EntryT | None:
        """Take the next entry of a caller who may run; None if there is none. The others keep their turns."""
        held_back = []
        while self._heap and not may_run(self._heap[0][3].caller):
            held_back.append(heapq.heappop(self._heap))
        entry = self._take() if self._heap else None
        for turn in held_back:
            heapq.heappush(self._heap, turn)
        self._forget()
        return entry

    def _take(self, is_served: bool = True) -> EntryT:
        tag, _, _, flow = heapq.heappop(self._heap)
        entry, cost = flow.entries.popleft()
        self._num_entries -= 1
        self._virtual_time = max(self._virtual_time, tag)
        if is_served:
            flow.tag += cost / flow.weight
        if flow.entries:
            self._wait(flow)
        return entry

    def _wait(self, flow: _Flow[EntryT]) -> None:
        self._num_turns += 1
        heapq.heappush(self._heap, (flow.tag, flow.rank, self._num_turns, flow))

    def _forget(self) -> None:
        """Forget idle callers, except those that have used more than their share (a tag in the future)."""
        if not self._heap:
            self._flows.clear()
            self._virtual_time = 0.0
        elif len(self._flows) > 2 * len(self._heap) + 64:
            self._flows = {
                key: flow
                for key, flow in self._flows.items()
                if flow.entries or flow.tag > self._virtual_time
            }
