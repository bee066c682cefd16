"""When an open-loop user sends: a Poisson process that no answer slows down. `users` follows it."""

import random
from collections.abc import Iterator


def poisson_arrivals(rate: float, seed: int | str) -> Iterator[float]:
    """Seconds since the start at which each request is due, without end: exponential gaps of mean 1/rate."""
    if rate <= 0:
        raise ValueError(f"the rate must be above 0 requests per second, not {rate:g}")
    rng = random.Random(seed)
    due = 0.0
    while True:
        due += rng.expovariate(rate)
        yield due
