"""When an open-loop user sends: a Poisson process that no answer slows down. `users` follows it."""

import math
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Stage:
    """A stretch of time, in seconds, with one mean rate, in requests per second; 0 is a pause."""

    seconds: float
    rate: float

    def __post_init__(self) -> None:
        if self.seconds <= 0 or self.rate < 0:
            raise ValueError(f"a stage lasts longer than 0 s at a rate of 0 or more, not {self}")


def poisson_arrivals(rate: float, seed: int | str) -> Iterator[float]:
    """Seconds since the start at which each request is due, without end: exponential gaps of mean 1/rate."""
    if rate <= 0:
        raise ValueError(f"the rate must be above 0 requests per second, not {rate:g}")
    rng = random.Random(seed)
    due = 0.0
    while True:
        due += rng.expovariate(rate)
        yield due


def staged_arrivals(stages: Sequence[Stage], seed: int | str) -> Iterator[float]:
    """A Poisson process whose rate follows the stages, and ends with them.

    Unit-rate arrivals, mapped through the inverse of the expected count (Çınlar 1975): exact for rates that
    are constant by pieces.
    """
    clock, begun_at, count = poisson_arrivals(1.0, seed), 0.0, 0.0
    arrival = next(clock)
    for stage in stages:
        while stage.rate and arrival < count + stage.rate * stage.seconds:
            yield begun_at + (arrival - count) / stage.rate
            arrival = next(clock)
        count += stage.rate * stage.seconds
        begun_at += stage.seconds


def sine(low: float, high: float, period_s: float, duration_s: float) -> tuple[Stage, ...]:
    """A day in small: from `low` up to `high` and back in every period, in forty-eighths of it."""
    step_s = period_s / 48
    num_steps = max(round(duration_s / step_s), 1)
    middle, swing = (low + high) / 2, (high - low) / 2
    return tuple(
        Stage(step_s, middle - swing * math.cos(2 * math.pi * (i + 0.5) / 48)) for i in range(num_steps)
    )


def spikes(base: float, peak: float, every_s: float, spike_s: float, duration_s: float) -> tuple[Stage, ...]:
    """`base`, and at the end of every `every_s` seconds `peak` for `spike_s` of them."""
    one = (Stage(every_s - spike_s, base), Stage(spike_s, peak))
    return one * max(round(duration_s / every_s), 1)
