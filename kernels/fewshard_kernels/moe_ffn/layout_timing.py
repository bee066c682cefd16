"""Measures which weight layout is fastest on this machine for each number of rows, once per layer shape.

Called by `pack_experts`. A measurement is kept for the life of the process, and in the `Memory` of
`remember_in`: two processes that measured for themselves would round differently.
"""

import math
import time
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from itertools import product
from typing import Any, NamedTuple, Protocol

import torch

from fewshard_kernels.moe_ffn.batch_plan import MAX_JOINED_ROWS, Cost
from fewshard_kernels.moe_ffn.layouts import BatchedLayout, Layout

# Row counts to time; all are values that `batch_plan.rounded` returns.
_ROWS = (1, 2, 4, 8, 16, 32, 64, 128, 512)
_PASSES = 5
# Experts are timed in turn, as a batch uses them, so their weights are not in the nearest cache.
_MAX_EXPERTS = 16
_MAX_ROWS_A_TURN = 262
# Minimum speed-up that justifies a copy of the weights, and that justifies a change of layout between sizes.
_COPY_PRICE = 1.1
_CHANGE_PRICE = 1.25

# Number of experts in a batched product while it is timed.
_BATCHED_EXPERTS = 8


class Memory(Protocol):
    """Keeps measurements beyond the process, as JSON values by key."""

    def recall(self, key: str) -> Any:
        """Return the value of a key; None if there is none."""

    def keep(self, key: str, value: Any) -> None:
        """Store a value. Never raises."""

    def alone(self) -> AbstractContextManager[None]:
        """While the context lasts, no other process measures into this memory."""


_remembered: dict[str, "_Timed"] = {}
_memory: Memory | None = None


def remember_in(memory: Memory | None) -> None:
    """From now on, take measurements from `memory`, and keep new ones there; None: in the process alone."""
    global _memory
    _memory = memory
    _remembered.clear()


class Tier(NamedTuple):
    """A layout and the number of rows of one expert up to which it is used."""

    max_rows: float
    layout: Layout


class Choice(NamedTuple):
    """The layouts to use, with their costs.

    tiers: layouts for an expert computed alone, by ascending row limit; the last has no limit.
    alone: cost of an expert computed alone, with the fastest layout for its rows.
    batched: layout for neighbouring experts together, or None if it is never faster.
    together: cost of an expert in such a product, or None.
    """

    tiers: tuple[Tier, ...]
    alone: Cost
    batched: BatchedLayout | None
    together: Cost | None


class _Timed(NamedTuple):
    """Measurements of one layer shape.

    names: name of the chosen layout for each of `_ROWS`.
    alone: cost of an expert with those layouts.
    together: cost of an expert in a batched product, or None if that is never faster.
    """

    names: list[str]
    alone: Cost
    together: Cost | None

    def as_json(self) -> dict[str, Any]:
        together = None if self.together is None else list(self.together.seconds)
        return {"names": self.names, "alone": list(self.alone.seconds), "together": together}

    @classmethod
    def of_json(cls, value: Any, candidates: Sequence[Layout]) -> "_Timed | None":
        """What `as_json` wrote; None if it is something else, or of other candidates."""
        try:
            names, together = list(value["names"]), value["together"]
            known = {layout.name for layout in candidates}
            if len(names) != len(_ROWS) or not known.issuperset(names):
                return None
            return cls(names, _cost(value["alone"]), None if together is None else _cost(together))
        except (KeyError, TypeError, ValueError):
            return None


def choose(
    candidates: Sequence[Layout], num_experts: int, hidden: int, width: int, *, for_any_number: bool = False
) -> Choice:
    """The fastest of `candidates` for each number of rows, and the batched layout where it is faster.

    Adjacent row counts with the same winner share a tier. The winner at the largest timed row count is used
    beyond it. The result is kept by shape, candidates and number of threads, so equal layers choose alike.
    `for_any_number` drops the number of experts from the key, where there is no time to measure again.
    """
    number = "any" if for_any_number else num_experts
    shape = f"{number} x {hidden} x {width}, {torch.get_num_threads()} threads"
    key = f"experts {shape}: {', '.join(layout.name for layout in candidates)}"
    batched = next((layout for layout in candidates if isinstance(layout, BatchedLayout)), None)
    if key not in _remembered:
        _remembered[key] = _recall_or_measure(
            key, candidates, batched, min(num_experts, _MAX_EXPERTS), hidden
        )
    found = _remembered[key]
    by_name = {layout.name: layout for layout in candidates}
    tiers = _merge([by_name[name] for name in found.names])
    return Choice(tiers, found.alone, batched if found.together else None, found.together)


def _recall_or_measure(
    key: str, candidates: Sequence[Layout], batched: BatchedLayout | None, num_experts: int, hidden: int
) -> _Timed:
    if _memory is None:
        return _measure(candidates, batched, num_experts, hidden)
    if found := _Timed.of_json(_memory.recall(key), candidates):
        return found
    with _memory.alone():
        # Another process may have measured meanwhile.
        if found := _Timed.of_json(_memory.recall(key), candidates):
            return found
        timed = _measure(candidates, batched, num_experts, hidden)
        _memory.keep(key, timed.as_json())
        return timed


def _cost(seconds: Sequence[float]) -> Cost:
    if len(seconds) != len(_ROWS) or not all(0 < each < math.inf for each in seconds):
        raise ValueError("not one positive time for each number of rows")
    return Cost(_ROWS, tuple(seconds))


def _measure(
    candidates: Sequence[Layout], batched: BatchedLayout | None, num_experts: int, hidden: int
) -> _Timed:
    seconds = _time(candidates, num_experts, hidden)
    names = _winners(candidates, seconds)
    alone = Cost(_ROWS, tuple(seconds[name][index] for index, name in enumerate(names)))
    if batched is None or num_experts == 1:
        return _Timed(names, alone, None)
    together = Cost(_ROWS, tuple(_time_batched(batched, min(num_experts, _BATCHED_EXPERTS), hidden)))
    pays = any(ours < theirs for ours, theirs in zip(together.seconds, alone.seconds, strict=True))
    return _Timed(names, alone, together if pays else None)


def _winners(candidates: Sequence[Layout], seconds: Mapping[str, Sequence[float]]) -> list[str]:
    """The name of the layout to use for each of `_ROWS`.

    Minimises the total log time plus a penalty per change of layout, so that one disturbed timing does not
    decide anything.
    """
    price = {layout.name: _COPY_PRICE if layout.num_bytes else 1.0 for layout in candidates}
    ways = {name: (0.0, list[str]()) for name in seconds}
    for index in range(len(_ROWS)):
        ways = {name: _go_on(ways, name, math.log(seconds[name][index] * price[name])) for name in seconds}
    return min(ways.values())[1]


def _go_on(ways: dict[str, tuple[float, list[str]]], name: str, cost: float) -> tuple[float, list[str]]:
    """The cheapest of `ways` extended by the layout `name`; a way's key is the layout that it ends with."""
    change = {last: 0.0 if last == name else math.log(_CHANGE_PRICE) for last in ways}
    last = min(ways, key=lambda last: ways[last][0] + change[last])
    return ways[last][0] + change[last] + cost, [*ways[last][1], name]


def _time(candidates: Sequence[Layout], num_experts: int, hidden: int) -> dict[str, list[float]]:
    """Seconds one expert takes in each layout, for each of `_ROWS`.

    The layouts alternate, so that load on the machine affects all alike; a low quantile drops interruptions.
    """
    samples: dict[str, list[list[float]]] = {layout.name: [[] for _ in _ROWS] for layout in candidates}
    for _, (index, num_rows), layout in product(range(_PASSES), enumerate(_ROWS), candidates):
        rows = torch.zeros(num_rows, hidden, dtype=layout.dtype)
        for expert in range(min(num_experts, max(2, _MAX_ROWS_A_TURN // num_rows))):
            start = time.perf_counter()
            layout.expert(rows, expert, "relu")
            samples[layout.name][index].append(time.perf_counter() - start)
    return {name: [_undisturbed(each) for each in rows] for name, rows in samples.items()}


def _time_batched(layout: BatchedLayout, num_experts: int, hidden: int) -> list[float]:
    """Seconds per expert in a joined product of up to `num_experts` experts, for each of `_ROWS`."""
    samples: list[list[float]] = [[] for _ in _ROWS]
    for _, (index, num_rows) in product(range(_PASSES), enumerate(_ROWS)):
        together = min(num_experts, max(2, MAX_JOINED_ROWS // num_rows))
        rows = torch.zeros(together, num_rows, hidden, dtype=layout.dtype)
        start = time.perf_counter()
        layout.experts(rows, 0, "relu")
        samples[index].append((time.perf_counter() - start) / together)
    return [_undisturbed(each) for each in samples]


def _undisturbed(seconds: list[float]) -> float:
    return sorted(seconds)[len(seconds) // 8]


def _merge(winners: Sequence[Layout]) -> tuple[Tier, ...]:
    limits = [*_ROWS[:-1], float("inf")]
    last = len(winners) - 1
    return tuple(
        Tier(limits[index], layout)
        for index, layout in enumerate(winners)
        if index == last or winners[index + 1] is not layout
    )
