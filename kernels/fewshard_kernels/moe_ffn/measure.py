"""Which layout of the experts is fastest here for how many rows: timed once a shape, then remembered."""

import time
from collections.abc import Sequence
from typing import NamedTuple

import torch

from fewshard_kernels.moe_ffn.layouts import Layout

_ROWS = (1, 2, 4, 8, 16, 32)
_PASSES = 5
# Several experts in turn, as a batch would use them, so that the weights are not hotter in cache than in use.
_MAX_EXPERTS = 4
# A further copy of the weights must earn its memory.
_MIN_GAIN = 1.1

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
    seconds = [
        {layout.name: _time(layout, rows, num_experts, hidden) for layout in candidates} for rows in _ROWS
    ]
    base = min(seconds[-1], key=seconds[-1].__getitem__)
    return [_winner(times, base) for times in seconds]


def _winner(times: dict[str, float], base: str) -> str:
    fastest = min(times, key=times.__getitem__)
    return fastest if times[fastest] * _MIN_GAIN < times[base] else base


def _time(layout: Layout, num_rows: int, num_experts: int, hidden: int) -> float:
    rows = torch.zeros(num_rows, hidden, dtype=layout.dtype)
    passes = []
    for _ in range(_PASSES):
        start = time.perf_counter()
        for expert in range(num_experts):
            layout.expert(rows, expert, "relu")
        passes.append(time.perf_counter() - start)
    return min(passes)


def _merge(winners: Sequence[Layout]) -> tuple[Tier, ...]:
    limits = [*_ROWS[:-1], float("inf")]
    last = len(winners) - 1
    return tuple(
        Tier(limits[index], layout)
        for index, layout in enumerate(winners)
        if index == last or winners[index + 1] is not layout
    )
