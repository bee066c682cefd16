"""Plan and result of one load-test run, as plain values. Does not import Locust."""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fewshard_loadtest.arrivals import Stage


@dataclass(frozen=True, slots=True)
class Plan:
    """One run of one generator process.

    host: URL of the server, or host:port for gRPC.
    model: the model to send requests to.
    protocol: one of `protocols.PROTOCOLS`.
    payload: a name or file for `payloads.load`.
    num_users: number of users. Without `rate` and `stages` the loop is closed: each user sends its next
        request when the last response has arrived.
    rate: requests per second of all users together; makes the loop open.
    stages: an open loop at changing rates.
    mix: models and their shares, in place of `model`.
    duration_s: seconds that are measured.
    warmup_s: seconds at the start whose requests are sent but not counted.
    num_items: texts or images per request.
    seed: seed of item order and arrival times.
    skip: number of items at the start of the first round to leave out.
    dialect: the kind of server, a key of `adapters.DIALECTS`.
    server_pid: process whose tree's CPU time is read; 0 for none.
    """

    host: str
    model: str
    protocol: str = "classify"
    payload: str = "texts"
    num_users: int = 1
    rate: float | None = None
    stages: tuple[Stage, ...] = ()
    mix: tuple[tuple[str, float], ...] = ()
    duration_s: float = 10.0
    warmup_s: float = 1.0
    num_items: int = 1
    seed: int = 0
    skip: int = 0
    dialect: str = "fewshard"
    server_pid: int = 0

    @property
    def is_open(self) -> bool:
        """Whether requests are sent at times that do not depend on the answers."""
        return self.rate is not None or bool(self.stages)

    @property
    def models(self) -> tuple[str, ...]:
        """All models that receive requests."""
        return tuple(name for name, _ in self.mix) or (self.model,)

    @classmethod
    def from_dict(cls, fields: dict[str, Any]) -> "Plan":
        """The inverse of `asdict`, also after a round trip through JSON."""
        stages = tuple(Stage(**stage) for stage in fields.get("stages", ()))
        mix = tuple((name, share) for name, share in fields.get("mix", ()))
        return cls(**{**fields, "stages": stages, "mix": mix})


@dataclass(frozen=True, slots=True)
class Sample:
    """One request.

    sent_at: time when it was sent, or in an open loop when it was due; epoch seconds.
    latency_ms: latency in milliseconds.
    error: the error, or None.
    lag_ms: delay of the generator itself.
    item: index of the request's first item in the payload; -1 if unknown.
    model: name of the model.
    label: predicted label of the first item.
    """

    sent_at: float
    latency_ms: float
    error: str | None
    lag_ms: float = 0.0
    item: int = -1
    model: str = ""
    label: str | None = None


@dataclass(frozen=True, slots=True)
class Result:
    """Summary of the requests sent within the measured time.

    Latencies cover successful responses and are None if there was none.

    rps: successful responses per second to requests that were sent within the measured time.
    answered_rps: successful responses per second that arrived within it, which is what a server sustains
        that falls behind.
    generator_cpu: share of one core that the generator (the busiest of several) used; near 1, it was the
        bottleneck.
    server_cpu_s: CPU seconds of the server's processes, if the plan names one.
    measured_s: measured seconds; shorter than the plan's duration if the run was cut short.
    lag_p99_ms: 99th percentile of the generator's own delay.
    """

    plan: Plan
    num_requests: int
    num_failures: int
    rps: float
    answered_rps: float
    mean_ms: float | None
    p50_ms: float | None
    p90_ms: float | None
    p95_ms: float | None
    p99_ms: float | None
    max_ms: float | None
    generator_cpu: float
    server_cpu_s: float | None
    errors: dict[str, int]
    measured_s: float = 0.0
    lag_p99_ms: float | None = None

    @property
    def error_share(self) -> float:
        """Failed requests as a share of all; 1 if there were no requests."""
        return self.num_failures / self.num_requests if self.num_requests else 1.0

    def as_dict(self) -> dict[str, Any]:
        """Fields as a dictionary for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, fields: dict[str, Any]) -> "Result":
        """The inverse of `as_dict`."""
        return cls(**{**fields, "plan": Plan.from_dict(fields["plan"])})


def summarise(
    plan: Plan,
    samples: Sequence[Sample],
    begun_at: float,
    generator_cpu: float,
    server_cpu_s: float | None = None,
    measured_s: float | None = None,
) -> Result:
    """Summarise the samples sent within `measured_s` seconds from `begun_at`.

    begun_at: end of the warm-up, in epoch seconds.
    measured_s: the plan's `duration_s` by default.
    """
    seconds = plan.duration_s if measured_s is None else measured_s
    ended_at = begun_at + seconds
    counted = [s for s in samples if begun_at <= s.sent_at < ended_at]
    good = [s for s in samples if s.error is None]
    num_answered = sum(begun_at <= s.sent_at + s.latency_ms / 1000 < ended_at for s in good)
    latencies = sorted(sample.latency_ms for sample in counted if sample.error is None)
    errors = Counter(sample.error for sample in counted if sample.error is not None)
    return Result(
        plan=plan,
        num_requests=len(counted),
        num_failures=errors.total(),
        rps=round(len(latencies) / seconds, 3),
        answered_rps=round(num_answered / seconds, 3),
        mean_ms=_rounded(sum(latencies) / len(latencies)) if latencies else None,
        p50_ms=percentile(latencies, 0.50),
        p90_ms=percentile(latencies, 0.90),
        p95_ms=percentile(latencies, 0.95),
        p99_ms=percentile(latencies, 0.99),
        max_ms=percentile(latencies, 1.0),
        generator_cpu=round(generator_cpu, 3),
        server_cpu_s=None if server_cpu_s is None else round(server_cpu_s, 3),
        errors=dict(errors),
        measured_s=round(seconds, 3),
        lag_p99_ms=percentile(sorted(sample.lag_ms for sample in counted), 0.99),
    )


def percentile(ordered: Sequence[float], share: float) -> float | None:
    """Nearest-rank percentile, rounded to three decimals; None without values."""
    value = nearest_rank(ordered, share)
    return None if value is None else _rounded(value)


def nearest_rank(ordered: Sequence[float] | NDArray[np.float64], share: float) -> float | None:
    """The smallest of the ascending values that at least `share` of them do not exceed; None if empty."""
    if not len(ordered):
        return None
    # numpy's and scipy's `inverted_cdf` return the 8th value for 0.14 of 50, since 0.14 * 50 > 7 in floats.
    return float(ordered[max(math.ceil(round(share * len(ordered), 9)), 1) - 1])


def _rounded(milliseconds: float) -> float:
    return round(milliseconds, 3)
