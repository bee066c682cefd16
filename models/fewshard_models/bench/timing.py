"""Times calls side by side: every round runs each of them once, so that a busy moment touches all alike.

The order is drawn anew for each round: what one call leaves in the caches must not always meet the same next.
"""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import count
from random import Random

import torch

# Seconds that one call took.
Clock = Callable[[Callable[[], object]], float]
# A call is given its number, and chooses weights and routing by it.
Call = Callable[[int], object]


@dataclass(frozen=True, slots=True)
class Budget:
    """How long one point may take: rounds until `seconds` have passed, within both limits."""

    seconds: float = 6.0
    min_rounds: int = 7
    max_rounds: int = 200
    warmups: int = 2

    def num_rounds(self, round_s: float) -> int:
        return min(self.max_rounds, max(self.min_rounds, int(self.seconds / max(round_s, 1e-9))))


def clock_for(device: str) -> Clock:
    """The clock of "cpu" or "cuda"."""
    return _device_seconds if device == "cuda" else _seconds


def interleaved(calls: Mapping[str, Call], clock: Clock, budget: Budget) -> dict[str, list[float]]:
    """Seconds of each call in each round, the calls in another order each time; warm-ups are not counted."""
    numbers, order = count(), Random(0)

    def one_round() -> dict[str, float]:
        names = order.sample(list(calls), len(calls))
        return {name: _timed(calls[name], next(numbers), clock) for name in names}

    for _ in range(budget.warmups):
        last = one_round()
    rounds = [one_round() for _ in range(budget.num_rounds(sum(last.values())))]
    return {name: [seconds[name] for seconds in rounds] for name in calls}


def _timed(call: Call, number: int, clock: Clock) -> float:
    return clock(lambda: call(number))


def _seconds(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def _device_seconds(call: Callable[[], object]) -> float:
    """By the device's own events, from the first kernel of a call to its last, idle gaps included."""
    start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize()
    start.record()
    call()
    stop.record()
    torch.cuda.synchronize()
    return float(start.elapsed_time(stop)) / 1e3
