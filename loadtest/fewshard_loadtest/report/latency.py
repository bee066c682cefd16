"""Latency figures from raw samples: percentiles, distributions, latency by load, and changes over time."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fewshard_loadtest.measure import nearest_rank
from fewshard_loadtest.results_store import LoadRun, Run
from fewshard_loadtest.search import ANSWERED_SHARE

NUM_QUANTILES = 200
NUM_MOMENTS = 60


@dataclass(frozen=True, slots=True)
class Latency:
    """Latency of successful responses, in milliseconds.

    num: number of samples.
    quantiles: pairs (share, latency) from 0 to 0.995 in even steps, then 0.999 and 1.
    """

    num: int
    p50_ms: float
    p95_ms: float
    p99_ms: float
    max_ms: float
    quantiles: tuple[tuple[float, float], ...]


@dataclass(frozen=True, slots=True)
class Point:
    """One run of a constant open loop; rates are predictions per second.

    rate: intended rate.
    sent, answered: measured rates of requests and of successful responses.
    is_limited: whether the generator was the bottleneck.
    """

    rate: float
    sent: float
    answered: float
    p50_ms: float | None
    p99_ms: float | None
    error_share: float
    is_limited: bool


@dataclass(frozen=True, slots=True)
class Moment:
    """An interval of a run whose rate changes.

    at_s: middle of the interval, in seconds.
    sent: requests per second.
    failed: number of failed requests.
    """

    at_s: float
    sent: float
    p50_ms: float | None
    p99_ms: float | None
    failed: int


def latency_of(run: Run, folder: Path, legs: Sequence[LoadRun], model: str) -> Latency | None:
    """Latency over all samples of the runs; None without a successful response."""
    parts = [recording.latencies_ms(model) for recording in run.recordings(folder, list(legs))]
    values = np.sort(np.concatenate(parts)) if parts else np.array([])
    if not len(values):
        return None
    shares = [*np.linspace(0, 0.995, NUM_QUANTILES).tolist(), 0.999, 1.0]
    p50, p95, p99, greatest = (_percentile(values, share) for share in (0.5, 0.95, 0.99, 1.0))
    return Latency(
        len(values),
        p50,
        p95,
        p99,
        greatest,
        tuple((round(share, 4), round(_percentile(values, share), 3)) for share in shares),
    )


def point_of(run: Run, folder: Path, leg: LoadRun) -> Point | None:
    """The point of one run; None if its samples file is missing."""
    for recording in run.recordings(folder, [leg]):
        rows, values = recording.measured, recording.latencies_ms()
        ends = recording.rows["sent_s"] + recording.rows["latency_ms"] / 1000
        good = recording.rows["error"] < 0
        answered = int((good & (ends >= 0) & (ends < recording.measured_s)).sum())
        items = leg.result.plan.num_items
        return Point(
            rate=items * (leg.rate or 0.0),
            sent=items * len(rows) / recording.measured_s,
            answered=items * answered / recording.measured_s,
            p50_ms=nearest_rank(values, 0.5),
            p99_ms=nearest_rank(values, 0.99),
            error_share=float((rows["error"] >= 0).mean()) if len(rows) else 1.0,
            is_limited=leg.is_limited,
        )
    return None


def strictest(curve: Sequence[Point], p99_ms: float, max_errors: float) -> float | None:
    """The greatest measured rate within a given SLO, which may differ from the one searched for."""
    kept = [
        point.rate
        for point in curve
        if point.p99_ms is not None
        and point.p99_ms <= p99_ms
        and point.error_share <= max_errors
        and point.answered >= ANSWERED_SHARE * point.sent
    ]
    return max(kept, default=None)


def moments_of(run: Run, folder: Path, leg: LoadRun, model: str) -> tuple[Moment, ...]:
    """The run divided into intervals of equal length."""
    for recording in run.recordings(folder, [leg]):
        rows = recording.measured
        if model not in recording.models:
            return ()
        rows = rows[rows["model"] == recording.models.index(model)]
        edges = np.linspace(0, recording.measured_s, NUM_MOMENTS + 1)
        return tuple(_moment(rows, begin, end) for begin, end in pairwise(edges))
    return ()


def _moment(rows: NDArray[np.void], begin: float, end: float) -> Moment:
    rows = rows[(rows["sent_s"] >= begin) & (rows["sent_s"] < end)]
    values = np.sort(rows["latency_ms"][rows["error"] < 0].astype(np.float64))
    return Moment(
        at_s=round((begin + end) / 2, 2),
        sent=len(rows) / (end - begin),
        p50_ms=nearest_rank(values, 0.5),
        p99_ms=nearest_rank(values, 0.99),
        failed=int((rows["error"] >= 0).sum()),
    )


def _percentile(values: NDArray[np.float64], share: float) -> float:
    value = nearest_rank(values, share)
    assert value is not None
    return value
