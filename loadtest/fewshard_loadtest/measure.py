"""What a load test ran and what came out of it, as plain values; no Locust in here."""

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

    Without `rate` and `stages` the loop is closed: `num_users` each send when the last answer has come. With
    `rate` (requests per second of all users together) it is open, with `stages` open at changing rates.
    `mix`: shares of several models instead of `model` alone. What is sent in the first `warmup_s` is answered
    but not counted. `num_items` texts or images a request; the first `skip` items of the round are left for
    later. `protocol` is one of `protocols.PROTOCOLS`,
    `payload` what `payloads.load` knows; `dialect` names another server's kind (`dialects`). `host` is a URL,
    or host:port of gRPC. `server_pid`, where not 0, is the process whose CPU time is read.
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
        """Every model that is asked."""
        return tuple(name for name, _ in self.mix) or (self.model,)

    @classmethod
    def from_dict(cls, fields: dict[str, Any]) -> "Plan":
        """The inverse of `asdict`, also after a way through JSON."""
        stages = tuple(Stage(**stage) for stage in fields.get("stages", ()))
        mix = tuple((name, share) for name, share in fields.get("mix", ()))
        return cls(**{**fields, "stages": stages, "mix": mix})


@dataclass(frozen=True, slots=True)
class Sample:
    """One request: when it was sent, or should have been (epoch seconds), its latency, and its error.

    `lag_ms`: how late the generator itself was. `item`: the place of its first item in the payload, -1 where
    that is not known; `label`: what was predicted for it.
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
    """The requests sent within the measured time. Latencies are of good answers; None where there was none.

    `rps` counts good answers to what was sent within that time; `answered_rps` those that came within it,
    which a server that falls behind sustains. `measured_s` is shorter than the plan's where the run was cut.
    `generator_cpu` is the share of one core that the generator itself used, the busiest process of several:
    near 1, it was the bottleneck. `lag_p99_ms`: how late it sent. `server_cpu_s` is the CPU time of the
    server's processes, where the plan names one.
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
        """Of the requests; 1 where there was none at all."""
        return self.num_failures / self.num_requests if self.num_requests else 1.0

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
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
    """Count what was sent from `begun_at` (epoch seconds, warm-up over) on, for `measured_s`.

    That is `duration_s` of the plan where it is not given.
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
    """The nearest rank's value, to a thousandth; None where there is no value."""
    value = nearest_rank(ordered, share)
    return None if value is None else _rounded(value)


def nearest_rank(ordered: Sequence[float] | NDArray[np.float64], share: float) -> float | None:
    """The smallest of the ascending values that at least `share` of them do not exceed.

    None where there is no value.
    """
    if not len(ordered):
        return None
    # numpy's and scipy's `inverted_cdf` take 0.14 of 50 values for the 8th: 0.14 * 50 is above 7 in floats.
    return float(ordered[max(math.ceil(round(share * len(ordered), 9)), 1) - 1])


def _rounded(milliseconds: float) -> float:
    return round(milliseconds, 3)
