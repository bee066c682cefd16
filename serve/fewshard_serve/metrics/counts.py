"""Counters and histograms that cost a request well under a microsecond each; filled by `recorder`.

A request meets a dozen of them. `prometheus_client`'s take two microseconds each, a noticeable part of what a
small model costs (docs/log.md).
"""

import time
from bisect import bisect_left
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from fewshard_serve.metrics.families import Family

Labels = tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Exemplar:
    """One observation with the trace it belongs to; `at`: seconds since the epoch."""

    trace_id: str
    value: float
    at: float


class Counts:
    """A counter. The recorder's lock is held around every call."""

    def __init__(self, family: Family) -> None:
        self.family = family
        self.values: dict[Labels, float] = {}

    def add(self, labels: Labels, amount: float = 1) -> None:
        self.values[labels] = self.values.get(labels, 0) + amount


class Buckets:
    """A histogram. The recorder's lock is held around every call."""

    def __init__(self, family: Family) -> None:
        self.family = family
        self.counts: dict[Labels, list[int]] = {}
        self.sums: dict[Labels, float] = {}
        self.exemplars: dict[tuple[Labels, int], Exemplar] = {}

    def add(self, labels: Labels, value: float, trace_id: str = "") -> None:
        counts = self.counts.get(labels)
        if counts is None:
            counts = self.counts[labels] = [0] * (len(self.family.buckets) + 1)
            self.sums[labels] = 0.0
        bucket = bisect_left(self.family.buckets, value)
        counts[bucket] += 1
        self.sums[labels] += value
        if trace_id:
            self.exemplars[labels, bucket] = Exemplar(trace_id, value, time.time())

    def copied(self) -> Iterator[tuple[Labels, list[int], float, Mapping[int, Exemplar]]]:
        """Labels, counts of each bucket (not cumulative), sum and exemplars by bucket."""
        for labels, counts in self.counts.items():
            shown = {at: one for (whose, at), one in self.exemplars.items() if whose == labels}
            yield labels, list(counts), self.sums[labels], shown
