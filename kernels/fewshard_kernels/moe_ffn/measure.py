"""Which layout of the experts is fastest here for how many rows: timed once a shape, then remembered."""

import math
import time
from collections.abc import Sequence
from itertools import product
from typing import NamedTuple

import torch

from fewshard_kernels.moe_ffn.layouts import Layout

# The last is odd, as most numbers of rows are: BLAS has faster kernels for some of the others.
_ROWS = (1, 2, 4, 8, 16, 32, 64, 131)
_PASSES = 5
# Experts in turn, as a batch uses them: their weights come from further away than one expert's would.
_MAX_EXPERTS = 16
_MAX_ROWS_A_TURN = 262
# What a copy of the weights must gain at the average number of rows, and another layout over all of them.
_COPY_PRICE = 1.1
_CHANGE_PRICE = 1.25

_remembered: dict[object, list[str]] = {}


class Tier(NamedTuple):
    """`layout` multiplies up to `max_rows` rows of one expert."""

    max_rows: float
    layout: Layout


def fastest_tiers(
    candidates: Sequence[Layout], num_experts: int, hidden: int, width: int
) -> tuple[Tier, ...]:
    """The fastest of `candidates` for each number of rows, neighbours that agree made one.

    The last limit is infinite: what wins at the most rows that are timed stays ahead beyond them. Remembered
    for the shape, the candidates and the number of threads, so that equal layers choose alike.
    """
    key = (tuple(layout.name for layout in candidates), num_experts, hidden, width, torch.get_num_threads())
    if key not in _remembered:
        _remembered[key] = _winners(candidates, min(num_experts, _MAX_EXPERTS), hidden)
    by_name = {layout.name: layout for layout in candidates}
    return _merge([by_name[name] for name in _remembered[key]])


def _winners(candidates: Sequence[Layout], num_experts: int, hidden: int) -> list[str]:
    """The name of the layout to use for each of `_ROWS`: the cheapest way through the timings, where every
    change costs something, so that a single disturbed timing decides nothing."""
    seconds = _time(candidates, num_experts, hidden)
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
    return {name: [sorted(each)[len(each) // 8] for each in rows] for name, rows in samples.items()}


def _merge(winners: Sequence[Layout]) -> tuple[Tier, ...]:
    limits = [*_ROWS[:-1], float("inf")]
    last = len(winners) - 1
    return tuple(
        Tier(limits[index], layout)
        for index, layout in enumerate(winners)
        if index == last or winners[index + 1] is not layout
    )
