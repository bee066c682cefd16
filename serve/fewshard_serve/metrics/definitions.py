"""Defines every metric (name, kind, help, labels, buckets) in one place, and the counters that hold values.

`recorder` fills the counters and histograms. An update takes well under a microsecond, and a request makes
about a dozen. Those of `prometheus_client` take two microseconds each, a noticeable part of the cost of a
small model (docs/log.md).
"""

import time
from bisect import bisect_left
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

Kind = Literal["counter", "gauge", "histogram"]

SECONDS = tuple(m * 10.0**e for e in range(-4, 2) for m in (1, 2, 5))[2:]
"""1-2-5 from 0.5 ms to 50 s."""
COUNTS = tuple(float(2**e) for e in range(18))
CONFIDENCES = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99, 1.0)


@dataclass(frozen=True, slots=True)
class Family:
    """One metric. Values are in base units, and the names of counters end in `_total`."""

    name: str
    kind: Kind
    help: str
    labels: tuple[str, ...] = ("model",)
    buckets: tuple[float, ...] = ()


REQUEST, STAGE, TOKENS = ("model", "protocol", "outcome"), ("model", "stage"), ("model", "state")
LAYER, EXPERT, SHARD = ("model", "layer"), ("model", "layer", "expert"), ("model", "layer", "shard")
WHAT = ("model", "version", "task", "kind", "architecture", "dtype", "device")
CASCADE_MACS = ("model", "of")  # `of`: spent, or last_stage_alone (what that stage would have taken)
APPLICATION, REPLICA = ("application",), ("application", "replica")

FAMILIES = (
    Family("fewshard_requests_total", "counter", "Requests by outcome: ok, or the error's code.", REQUEST),
    Family(
        "fewshard_request_seconds", "histogram", "From a request's arrival to its answer.", buckets=SECONDS
    ),
    Family("fewshard_stage_seconds", "histogram", "Answered requests in each stage.", STAGE, SECONDS),
    Family("fewshard_items_total", "counter", "Items that went through the model."),
    Family("fewshard_tokens_total", "counter", "Tokens through the model: real or padding.", TOKENS),
    Family("fewshard_batch_items", "histogram", "Items of one forward pass.", buckets=COUNTS[:11]),
    Family("fewshard_batch_tokens", "histogram", "Real tokens of one forward pass.", buckets=COUNTS[3:]),
    Family("fewshard_infer_seconds_total", "counter", "Time in the model's forward passes."),
    Family("fewshard_queue_items", "gauge", "Items that wait for a forward pass."),
    Family("fewshard_inflight_items", "gauge", "Items admitted and not answered yet."),
    Family("fewshard_admission_limit_items", "gauge", "Items in flight that may be now; adapts."),
    Family("fewshard_expert_tokens_total", "counter", "Rows each expert received.", EXPERT),
    Family(
        "fewshard_expert_share_ratio",
        "gauge",
        "Expert's share of its layer's rows, last minute: the worst layers of a large model.",
        EXPERT,
    ),
    Family("fewshard_shard_tokens_total", "counter", "Rows the experts of each shard received.", SHARD),
    Family("fewshard_expert_imbalance_ratio", "gauge", "Busiest expert over the mean, last minute.", LAYER),
    Family(
        "fewshard_router_entropy_ratio", "gauge", "Router's entropy over its maximum, last minute.", LAYER
    ),
    Family("fewshard_dead_experts", "gauge", "Experts that got no row in the last minute.", LAYER),
    Family(
        "fewshard_expert_use_ratio",
        "gauge",
        "Experts in effective use over those there are, last minute: 1 is even, 1/experts is collapse.",
        LAYER,
    ),
    Family("fewshard_group_size", "gauge", "Shards at work of those that hold the model together."),
    Family("fewshard_group_shards", "gauge", "Shards that should hold the model together."),
    Family("fewshard_group_degraded", "gauge", "1 while answers are given without some experts."),
    Family("fewshard_group_reforms_total", "counter", "How often the shards at work have changed."),
    Family("fewshard_placement_moves_total", "counter", "Experts that a shard has loaded since the start."),
    Family("fewshard_predictions_total", "counter", "Items by predicted label.", ("model", "label")),
    Family("fewshard_confidence", "histogram", "Best score of each item.", buckets=CONFIDENCES),
    Family(
        "fewshard_label_drift_ratio",
        "gauge",
        "Share of the last items' labels that would have to change to match the card's (total variation).",
    ),
    Family(
        "fewshard_confidence_drift_ratio",
        "gauge",
        "Distance of the last items' confidence from the card's (Kolmogorov-Smirnov).",
    ),
    Family(
        "fewshard_activation_sparsity_ratio",
        "gauge",
        "Share of a layer's feed-forward units near zero, over the last sampled items.",
        LAYER,
    ),
    Family(
        "fewshard_shadow_items_total",
        "counter",
        "Items also given to the shadow: agree, disagree, failed or skipped.",
        ("model", "shadow", "outcome"),
    ),
    Family(
        "fewshard_canary_requests_total",
        "counter",
        "Requests given to both versions of a canary: agree, flip, failed or skipped.",
        ("model", "version", "outcome"),
    ),
    Family(
        "fewshard_canary_steps_total",
        "counter",
        "Steps of a canary: started, raised, promoted or rolled_back.",
        ("model", "version", "step"),
    ),
    Family(
        "fewshard_canary_weight_ratio",
        "gauge",
        "The new version's part of the requests that ask for no version.",
        ("model", "version"),
    ),
    Family(
        "fewshard_energy_joules_total",
        "counter",
        "Energy of the forward passes: measured by the device, or modelled as watts times their time.",
        ("model", "method"),
    ),
    Family("fewshard_cost_usd_total", "counter", "Price of the time in the model's forward passes."),
    Family("fewshard_cascade_items_total", "counter", "Items of a cascade by the stage that spoke.", STAGE),
    Family("fewshard_cascade_macs_total", "counter", "MACs of a cascade by its models' cards.", CASCADE_MACS),
    Family("fewshard_model_ready", "gauge", "1 while the model takes requests, else 0."),
    Family("fewshard_model_info", "gauge", "1 for each model; its labels say what it is.", WHAT),
    Family("fewshard_model_accuracy_ratio", "gauge", "Accuracy by the model's card."),
    Family("fewshard_model_macs", "gauge", "Multiply-accumulates of one item by the model's card."),
    Family("fewshard_model_parameters", "gauge", "Parameters by the model's card.", ("model", "state")),
    Family("fewshard_build_info", "gauge", "1; its labels say what runs.", ("version", "python")),
    Family("fewshard_process_cpu_seconds_total", "counter", "CPU time of the replica's processes.", ()),
    Family("fewshard_process_resident_bytes", "gauge", "Memory of the replica's processes.", ()),
    Family(
        "fewshard_disk_free_bytes",
        "gauge",
        "Free bytes on the disk of Ray's folder, which a new replica needs; 0 if it cannot be written.",
        (),
    ),
    Family("fewshard_replica_up", "gauge", "1 where a replica answered this scrape, else 0.", REPLICA),
    Family("fewshard_replicas_wanted", "gauge", "Replicas an application has at least.", APPLICATION),
)
BY_NAME = {family.name: family for family in FAMILIES}


Labels = tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Exemplar:
    """One observation and its trace. `at`: seconds since the epoch."""

    trace_id: str
    value: float
    at: float


class Counter:
    """A counter. The recorder's lock is held around every call."""

    def __init__(self, family: Family) -> None:
        self.family = family
        self.values: dict[Labels, float] = {}

    def add(self, labels: Labels, amount: float = 1) -> None:
        self.values[labels] = self.values.get(labels, 0) + amount


class Histogram:
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
        """Yield, for each label set: labels, counts by bucket (not cumulative), sum, exemplars by bucket."""
        for labels, counts in self.counts.items():
            shown = {at: one for (whose, at), one in self.exemplars.items() if whose == labels}
            yield labels, list(counts), self.sums[labels], shown
