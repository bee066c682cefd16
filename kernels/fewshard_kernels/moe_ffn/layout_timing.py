"""Which layout of the experts is fastest here for how many rows: timed once a shape, then remembered.

Called by `pack_experts`.
"""

import math
import time
from collections.abc import Mapping, Sequence
from itertools import product
from typing import NamedTuple

import torch

from fewshard_kernels.moe_ffn.batch_plan import MAX_JOINED_ROWS, Cost
from fewshard_kernels.moe_ffn.layouts import BatchedLayout, Layout

# Numbers that `segments.rounded` gives.
_ROWS = (1, 2, 4, 8, 16, 32, 64, 128, 512)
_PASSES = 5
# Experts in turn, as a batch uses them: their weights come from further away than one expert's would.
_MAX_EXPERTS = 16
_MAX_ROWS_A_TURN = 262
# What a copy of the weights must gain at the average number of rows, and another layout over all of them.
_COPY_PRICE = 1.1
_CHANGE_PRICE = 1.25

# Experts of one batched product while it is timed.
_BATCHED_EXPERTS = 8

_remembered: dict[object, "_Timed"] = {}


class Tier(NamedTuple):
    """`layout` multiplies up to `max_rows` rows of one expert."""

    max_rows: float
    layout: Layout


class Choice(NamedTuple):
    """The layouts to use: `tiers` for an expert alone, in ascending order of rows, the last without a limit;
    `batched` for neighbours together, where it beats them at any number of rows. With what each costs."""

    tiers: tuple[Tier, ...]
    alone: Cost
    batched: BatchedLayout | None
    together: Cost | None


class _Timed(NamedTuple):
    """What was measured for a shape: the fastest layout at each of `_ROWS` by name, its seconds, and those of
    the batched products."""

    names: list[str]
    alone: Cost
    together: Cost | None


def choose(
    candidates: Sequence[Layout], num_experts: int, hidden: int, width: int, *, for_any_number: bool = False
) -> Choice:
    """The fastest of `candidates` for each number of rows, neighbours that agree made one; and a batched one,
    if it is among them, for experts together where that is faster.

    What wins at the most rows that are timed stays ahead beyond them. Remembered for the shape, the
    candidates and the number of threads, so that equal layers choose alike; with `for_any_number` for every
    number of experts, where there is no time for measuring again.
    """
    number = None if for_any_number else num_experts
    key = (tuple(layout.name for layout in candidates), number, hidden, width, torch.get_num_threads())
    batched = next((layout for layout in candidates if isinstance(layout, BatchedLayout)), None)
    if key not in _remembered:
        _remembered[key] = _measure(candidates, batched, min(num_experts, _MAX_EXPERTS), hidden)
    found = _remembered[key]
    by_name = {layout.name: layout for layout in candidates}
    tiers = _merge([by_name[name] for name in found.names])
    return Choice(tiers, found.alone, batched if found.together else None, found.together)


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
    """The name of the layout to use for each of `_ROWS`: the cheapest way through the timings, where every
    change costs something, so that a single disturbed timing decides nothing."""
    price = {layout.name: _COPY_PRICE if layout.num_bytes else 1.0 for layout in candidates}
    ways = {name: (0.0, list[str]()) for name in seconds}
    for index in range(len(_ROWS)):
        ways = {name: _go_on(ways, name, math.log(seconds[name][index] * price[name])) for name in seconds}
    return min(ways.values())[1]


def _go_on(ways: dict[str, tuple[float, list[str]]], name: str, cost: float) -> tuple[float, list[str]]:
    """The cheapest of `ways` prolonged by `name`; a way's key is the layout it ends with."""
    change = {last: 0.0 if last == name else math.log(_CHANGE_PRICE) for last in ways}
    last = min(ways, key=lambda last: ways[last][0] + change[last])
    return ways[last][0] + change[last] + cost, [*ways[last][1], name]


def _time(candidates: Sequence[Layout], num_experts: int, hidden: int) -> dict[str, list[float]]:
    """Seconds one expert takes in each layout, for each of `_ROWS`.

    The layouts take turns, so that a busy machine slows them alike; a low quantile leaves out interruptions.
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
    """Seconds an expert takes in a joined product of up to `num_experts`, for each of `_ROWS`."""
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
