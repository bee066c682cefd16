"""The statistics of a model since it was loaded, in the form of Triton's statistics extension.

The HTTP layer counts requests, the runner counts batches, and `GET …/stats` adds up the replicas.
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
    """How often something happened, and its total time in nanoseconds."""

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
    """The counters of one model on one replica; plain data that can be sent between processes.

    The event loop calls `add_request` and `add_failure`, the runner's thread calls `add_batch`. They write
    different fields, so no lock is needed.

    requests: by stage, as Triton names them.
    batches: by the number of items in the batch.
    last_inference_ms: when the last batch ended, in milliseconds since 1970.
    """

    requests: dict[str, Duration] = field(default_factory=_durations)
    batches: dict[int, Duration] = field(default_factory=dict)
    last_inference_ms: int = 0

    def add_request(self, total_s: float, timings: Timings, output_s: float) -> None:
        """Count an answered request: its total time, its stages, and the time to build the answer."""
        self.requests["success"].add(total_s)
        self.requests["queue"].add(timings.queue_s)
        self.requests["compute_input"].add(timings.preprocess_s)
        self.requests["compute_infer"].add(timings.infer_s)
        self.requests["compute_output"].add(output_s)

    def add_failure(self, total_s: float) -> None:
        """Count a request that was answered with an error."""
        self.requests["fail"].add(total_s)

    def add_batch(self, batch: BatchStats) -> None:
        """Count one forward pass."""
        self.batches.setdefault(batch.num_items, Duration()).add(batch.infer_s)
        self.last_inference_ms = time.time_ns() // 1_000_000

    def as_dict(self, name: str, version: str) -> dict[str, Any]:
        """One entry of `model_stats`. As in Triton, its two counts are items and forward passes."""
        # The runner's thread may add a batch size meanwhile. Copying a dict is atomic, iterating is not.
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
    none = Duration(seen.count).as_dict()  # we measure input and output times by request, not by batch
    return {
        "batch_size": size,
        "compute_input": none,
        "compute_infer": seen.as_dict(),
        "compute_output": none,
    }


def merge(parts: Iterable[ModelStatistics]) -> ModelStatistics:
    """The sum of the statistics of several replicas of one model, as a new object."""
    total = ModelStatistics()
    for part in parts:
        for stage, seen in part.requests.items():
            total.requests[stage] += seen
        for size, seen in part.batches.copy().items():
            total.batches[size] = total.batches.get(size, Duration()) + seen
        total.last_inference_ms = max(total.last_inference_ms, part.last_inference_ms)
    return total
