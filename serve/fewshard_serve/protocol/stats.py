"""What a model has done since it was loaded, in the shape of Triton's statistics extension.

The HTTP layer counts requests, the runner counts batches, `GET …/stats` adds the replicas up.
"""

import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, Self

from fewshard_serve.core import BatchStats, Timings


def _ns(seconds: float) -> int:
    return round(seconds * 1e9)


@dataclass(slots=True)
class Duration:
    """How often something happened, and how long it took altogether in nanoseconds."""

    count: int = 0
    ns: int = 0

    def add(self, seconds: float) -> None:
        self.count += 1
        self.ns += _ns(seconds)

    def __add__(self, other: Self) -> "Duration":
        return Duration(self.count + other.count, self.ns + other.ns)

    def as_dict(self) -> dict[str, int]:
        return {"count": self.count, "ns": self.ns}


def _durations() -> dict[str, Duration]:
    names = ("success", "fail", "queue", "compute_input", "compute_infer", "compute_output")
    return {name: Duration() for name in (*names, "cache_hit", "cache_miss")}


@dataclass(slots=True)
class ModelStatistics:
    """The counters of one model on one replica; plain data, so that it travels between processes.

    `add_request` and `add_failure` belong to the event loop, `add_batch` to the runner's thread. They write
    different fields, so no lock is needed.
    """

    requests: dict[str, Duration] = field(default_factory=_durations)
    batches: dict[int, Duration] = field(default_factory=dict)
    last_inference_ms: int = 0

    def add_request(self, total_s: float, timings: Timings, output_s: float) -> None:
        """One answered request: its whole time, its stages, and the time spent building the answer."""
        self.requests["success"].add(total_s)
        self.requests["queue"].add(timings.queue_s)
        self.requests["compute_input"].add(timings.preprocess_s)
        self.requests["compute_infer"].add(timings.infer_s)
        self.requests["compute_output"].add(output_s)

    def add_failure(self, total_s: float) -> None:
        """One request that got an error, whatever the reason."""
        self.requests["fail"].add(total_s)

    def add_batch(self, batch: BatchStats) -> None:
        """One forward pass."""
        self.batches.setdefault(batch.num_items, Duration()).add(batch.infer_s)
        self.last_inference_ms = time.time_ns() // 1_000_000

    def as_dict(self, name: str, version: str) -> dict[str, Any]:
        """One entry of `model_stats`. Its counts are items and forward passes, as Triton means them."""
        # The runner's thread may add a batch size meanwhile; copying a dict is one step, iterating is not.
        batches = sorted(self.batches.copy().items())
        return {
            "name": name,
            "version": version,
            "last_inference": self.last_inference_ms,
            "inference_count": sum(size * seen.count for size, seen in batches),
            "execution_count": sum(seen.count for _, seen in batches),
            "inference_stats": {stage: seen.as_dict() for stage, seen in self.requests.items()},
            "response_stats": {},
            "batch_stats": [_batch_entry(size, seen) for size, seen in batches],
            "memory_usage": [],
        }


def _batch_entry(size: int, seen: Duration) -> dict[str, Any]:
    none = Duration(seen.count).as_dict()  # preparing and answering belong to requests here, not to batches
    return {
        "batch_size": size,
        "compute_input": none,
        "compute_infer": seen.as_dict(),
        "compute_output": none,
    }


def merge(parts: Iterable[ModelStatistics]) -> ModelStatistics:
    """The statistics of several replicas of one model, added up into a new object."""
    total = ModelStatistics()
    for part in parts:
        for stage, seen in part.requests.items():
            total.requests[stage] += seen
        for size, seen in part.batches.copy().items():
            total.batches[size] = total.batches.get(size, Duration()) + seen
        total.last_inference_ms = max(total.last_inference_ms, part.last_inference_ms)
    return total
