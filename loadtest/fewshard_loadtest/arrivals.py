"""Arrival times of open-loop requests: a Poisson process, independent of responses. Used by `users`."""

import math
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Stage:
    """A time interval with a constant mean rate.

    seconds: length of the interval; above 0.
    rate: mean requests per second; 0 is a pause.
    """

    seconds: float
    rate: float

    def __post_init__(self) -> None:
        if self.seconds <= 0 or self.rate < 0:
            raise ValueError(f"a stage lasts longer than 0 s at a rate of 0 or more, not {self}")


def poisson_arrivals(rate: float, seed: int | str) -> Iterator[float]:
    """Endless due times, in seconds since the start, with exponential gaps of mean 1/rate."""
    if rate <= 0:
        raise ValueError(f"the rate must be above 0 requests per second, not {rate:g}")
    rng = random.Random(seed)
    due = 0.0
    while True:
        due += rng.expovariate(rate)
        yield due


def staged_arrivals(stages: Sequence[Stage], seed: int | str) -> Iterator[float]:
    """Due times, in seconds since the start, of a Poisson process whose rate follows `stages`.

    The process ends with the last stage. Unit-rate arrivals are mapped through the inverse of the expected
    count (Çınlar 1975), which is exact for piecewise constant rates.
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
    """A compressed daily cycle: `low` to `high` and back in every period, in 48 steps per period."""
    step_s = period_s / 48
    num_steps = max(round(duration_s / step_s), 1)
    middle, swing = (low + high) / 2, (high - low) / 2
    return tuple(
        Stage(step_s, middle - swing * math.cos(2 * math.pi * (i + 0.5) / 48)) for i in range(num_steps)
    )


def spikes(base: float, peak: float, every_s: float, spike_s: float, duration_s: float) -> tuple[Stage, ...]:
    """Rate `base`, with rate `peak` in the last `spike_s` of every `every_s` seconds."""
    one = (Stage(every_s - spike_s, base), Stage(spike_s, peak))
    return one * max(round(duration_s / every_s), 1)
