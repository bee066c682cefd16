"""Times candidates round by round, so that load on the machine falls on all alike."""

import time
from collections.abc import Callable, Mapping, Sequence

Run = Callable[[int], object]
"""Runs one batch of so many items."""
Clock = Callable[[], float]

MAX_ROUNDS = 12
MIN_ROUNDS = 2
CLEAR = 1.3
"""Times that differ by this factor need no more than `MIN_ROUNDS`."""
BEHIND = 1.5
"""A candidate that is so many times slower than the fastest in a batch is out of the race."""


def time_batches(
    runs: Mapping[str, Run],
    sizes: Sequence[int],
    limit_s: float,
    stopwatch: Clock = time.thread_time,
    clock: Clock = time.perf_counter,
) -> dict[str, dict[int, float]]:
    """Return items/s of each run for each size, ascending; from its shortest time.

    stopwatch: times a run. By default it counts what this thread computes, so that other processes disturb
        little; a run of several threads needs a clock.

    Sizes that would exceed `limit_s` are left out, but never the first. Who is far behind in batches is not
    timed with larger ones.
    """
    found: dict[str, dict[int, float]] = {name: {} for name in runs}
    racing, end = dict(runs), clock() + limit_s
    for number, size in enumerate(sizes):
        expected_s = 2 * sum(size / found[name][sizes[number - 1]] for name in racing) if number else 0.0
        if number and clock() + expected_s > end:
            break
        share = (end - clock()) / (len(sizes) - number)
        for name, seconds in _shortest(racing, size, share, stopwatch, clock).items():
            found[name][size] = size / seconds
        best = max(found[name][size] for name in racing)
        if size > 1:
            racing = {name: run for name, run in racing.items() if found[name][size] * BEHIND > best}
    return found


def _shortest(
    runs: Mapping[str, Run], size: int, limit_s: float, stopwatch: Clock, clock: Clock
) -> dict[str, float]:
    """Return the shortest seconds of each run for batches of `size` items."""
    names, until = list(runs), clock() + limit_s
    for name in names:
        runs[name](size)  # compiles kernels
    samples: dict[str, list[float]] = {name: [] for name in names}
    for number in range(MAX_ROUNDS):
        for name in names:
            start = stopwatch()
            runs[name](size)
            samples[name].append(max(stopwatch() - start, 1e-9))
        if clock() > until or (number + 1 >= MIN_ROUNDS and _is_clear(samples)):
            break
        names = names[1:] + names[:1]
    return {name: min(each) for name, each in samples.items()}


def _is_clear(samples: Mapping[str, Sequence[float]]) -> bool:
    shortest = sorted(min(each) for each in samples.values())
    return len(shortest) < 2 or shortest[1] > CLEAR * shortest[0]
