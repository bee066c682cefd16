"""Every metric of the server, and the only module that knows Prometheus; fed plain stats by the host.

The gateway uses `merge_expositions` to make one text of all replicas' texts.
"""

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from prometheus_client import (
    CollectorRegistry,
    Counter,
    Histogram,
    disable_created_metrics,
    generate_latest,
)
from prometheus_client.metrics_core import Metric
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.registry import Collector

from fewshard_serve.core import BatchStats, GroupState, ModelInfo, Timings
from fewshard_serve.engine.routing import Routing, entropy_ratio, imbalance_ratio

logger = logging.getLogger(__name__)

Kind = Literal["counter", "gauge", "histogram"]

SECONDS = tuple(m * 10.0**e for e in range(-4, 2) for m in (1, 2, 5))[2:]
"""1-2-5 from 0.5 ms to 50 s."""
COUNTS = tuple(float(2**e) for e in range(18))
CONFIDENCES = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99, 1.0)


@dataclass(frozen=True, slots=True)
class Family:
    """One metric as it is scraped; base units, counters end in `_total`."""

    name: str
    kind: Kind
    help: str
    labels: tuple[str, ...] = ("model",)
    buckets: tuple[float, ...] = ()


REQUEST, STAGE, TOKENS = ("model", "protocol", "outcome"), ("model", "stage"), ("model", "state")
LAYER, EXPERT, SHARD = ("model", "layer"), ("model", "layer", "expert"), ("model", "layer", "shard")
WHAT = ("model", "version", "task", "kind", "architecture", "dtype", "device")
LABEL = ("model", "label")
CASCADE_MACS = ("model", "of")  # spent, or what the last stage alone would have taken

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
    Family("fewshard_queue_items", "gauge", "Items that wait for a forward pass."),
    Family("fewshard_inflight_items", "gauge", "Items admitted and not answered yet."),
    Family("fewshard_admission_limit_items", "gauge", "Items in flight that may be now; adapts."),
    Family("fewshard_expert_tokens_total", "counter", "Rows each expert received.", EXPERT),
    Family("fewshard_shard_tokens_total", "counter", "Rows the experts of each shard received.", SHARD),
    Family("fewshard_expert_imbalance_ratio", "gauge", "Busiest expert over the mean, last minute.", LAYER),
    Family(
        "fewshard_router_entropy_ratio", "gauge", "Router's entropy over its maximum, last minute.", LAYER
    ),
    Family("fewshard_group_size", "gauge", "Shards at work of those that hold the model together."),
    Family("fewshard_group_reforms_total", "counter", "How often the shards at work have changed."),
    Family("fewshard_placement_moves_total", "counter", "Experts that a shard has loaded since the start."),
    Family("fewshard_predictions_total", "counter", "Items by predicted label.", LABEL),
    Family("fewshard_confidence", "histogram", "Best score of each item.", buckets=CONFIDENCES),
    Family("fewshard_cascade_items_total", "counter", "Items of a cascade by the stage that spoke.", STAGE),
    Family("fewshard_cascade_macs_total", "counter", "MACs of a cascade by its models' cards.", CASCADE_MACS),
    Family("fewshard_model_info", "gauge", "1 for each model; its labels say what it is.", WHAT),
)
BY_NAME = {family.name: family for family in FAMILIES}


@dataclass(frozen=True, slots=True)
class ModelSource:
    """Where a scrape reads what is not counted request by request; called from the scraping thread.

    `has_queue` is false of a model that only asks others, as a cascade does: it admits and queues nothing.
    """

    info: ModelInfo
    queue_items: Callable[[], int]
    inflight_items: Callable[[], int]
    admission_limit_items: Callable[[], int]
    has_queue: bool = True
    routing: Callable[[], Routing | None] = lambda: None
    group: Callable[[], GroupState | None] = lambda: None


class Tally:
    """Predictions of one model by label and confidence, added an array at a time."""

    def __init__(self, info: ModelInfo) -> None:
        self.info = info
        self.by_label = np.zeros(len(info.labels), np.int64)
        self.by_confidence = np.zeros(len(CONFIDENCES) + 1, np.int64)
        self.confidence_sum = 0.0

    def add(self, scores: NDArray[np.float32]) -> None:
        """`scores` [num_items, num_labels] after activation; of several labels, those from 0.5 up count."""
        if self.info.problem_type == "regression":
            return
        best = scores.max(axis=1)
        if self.info.problem_type == "multi_label_classification" or scores.shape[1] == 1:
            self.by_label += (scores >= 0.5).sum(axis=0)
        else:
            self.by_label += np.bincount(scores.argmax(axis=1), minlength=scores.shape[1])
        upper = np.searchsorted(
            np.array(CONFIDENCES, np.float32), best
        )  # a value on a bound belongs below it
        self.by_confidence += np.bincount(upper, minlength=len(self.by_confidence))
        self.confidence_sum += float(best.sum())


class Metrics:
    """One replica's metrics, in a registry of their own. Every method may be called from any thread."""

    def __init__(self) -> None:
        disable_created_metrics()  # one extra series for each counter and histogram, of use to few
        self._registry = CollectorRegistry()
        self._scraped = _Scraped()
        self._registry.register(self._scraped)
        self._requests = self._counter("fewshard_requests_total")
        self._request_seconds = self._histogram("fewshard_request_seconds")
        self._stage_seconds = self._histogram("fewshard_stage_seconds")
        self._items = self._counter("fewshard_items_total")
        self._tokens = self._counter("fewshard_tokens_total")
        self._batch_items = self._histogram("fewshard_batch_items")
        self._batch_tokens = self._histogram("fewshard_batch_tokens")
        self._cascade_items = self._counter("fewshard_cascade_items_total")
        self._cascade_macs = self._counter("fewshard_cascade_macs_total")

    def add_model(self, source: ModelSource) -> None:
        """Begin to report a model; its gauges are read when somebody scrapes."""
        self._scraped.add(source)

    def observe_request(self, model: str, protocol: str, outcome: str, seconds: float) -> None:
        """One answered or refused request."""
        self._requests.labels(model, protocol, outcome).inc()
        self._request_seconds.labels(model).observe(seconds)

    def observe_timings(self, model: str, timings: Timings) -> None:
        """The stages of one request that was answered."""
        self._stage_seconds.labels(model, "preprocess").observe(timings.preprocess_s)
        self._stage_seconds.labels(model, "queue").observe(timings.queue_s)
        self._stage_seconds.labels(model, "infer").observe(timings.infer_s)

    def observe_batch(self, stats: BatchStats) -> None:
        """One forward pass."""
        self._items.labels(stats.model).inc(stats.num_items)
        self._tokens.labels(stats.model, "real").inc(stats.num_tokens)
        self._tokens.labels(stats.model, "padding").inc(stats.num_padding_tokens)
        self._batch_items.labels(stats.model).observe(stats.num_items)
        self._batch_tokens.labels(stats.model).observe(stats.num_tokens)

    def observe_predictions(self, model: str, scores: NDArray[np.float32]) -> None:
        """The scores [num_items, num_labels], after activation, of one answered request."""
        self._scraped.tallies[model].add(scores)

    def observe_cascade(self, model: str, items: Mapping[str, int], macs: float, macs_of_last: float) -> None:
        """One answered request of a cascade: items by the stage that spoke, and MACs where they are known."""
        for stage, num_items in items.items():
            self._cascade_items.labels(model, stage).inc(num_items)
        if macs_of_last:
            self._cascade_macs.labels(model, "spent").inc(macs)
            self._cascade_macs.labels(model, "last_stage_alone").inc(macs_of_last)

    def render(self, extra_labels: Mapping[str, str] | None = None) -> bytes:
        """The Prometheus text (version 0.0.4), with `extra_labels` on every sample."""
        labels = dict(extra_labels or {})
        return generate_latest(_Listed([_labelled(metric, labels) for metric in self._registry.collect()]))

    def _counter(self, name: str) -> Counter:
        family = BY_NAME[name]
        return Counter(name, family.help, family.labels, registry=self._registry)

    def _histogram(self, name: str) -> Histogram:
        family = BY_NAME[name]
        return Histogram(name, family.help, family.labels, buckets=family.buckets, registry=self._registry)


class _Listed(Collector):
    def __init__(self, metrics: Iterable[Metric]) -> None:
        self._metrics = list(metrics)

    def collect(self) -> Iterator[Metric]:
        return iter(self._metrics)


class _Scraped(Collector):
    """What is read at scrape time: gauges of every model, tallies, and experts from their device."""

    def __init__(self) -> None:
        self.sources: dict[str, ModelSource] = {}
        self.tallies: dict[str, Tally] = {}

    def add(self, source: ModelSource) -> None:
        self.tallies[source.info.name] = Tally(source.info)
        self.sources[source.info.name] = source

    def collect(self) -> Iterator[Metric]:
        samples = _Samples()
        for name, source in list(self.sources.items()):
            _sample_source(samples, source)
            _sample_tally(samples, self.tallies[name])
            _sample_routing(samples, source)
            _sample_group(samples, source)
        return iter(samples.metrics.values())

    def describe(self) -> list[Metric]:
        return []


class _Samples:
    """Metrics being filled, by the name of their family."""

    def __init__(self) -> None:
        self.metrics: dict[str, Metric] = {}

    def add(self, name: str, labels: Sequence[Any], value: float, suffix: str = "", **more: str) -> None:
        family = BY_NAME[name]
        base = name.removesuffix("_total")
        metric = self.metrics.setdefault(name, Metric(base, family.help, family.kind))
        pairs = dict(zip(family.labels, map(str, labels), strict=True))
        metric.add_sample(name + suffix, {**pairs, **more}, value)


def _sample_source(samples: _Samples, source: ModelSource) -> None:
    info = source.info
    if source.has_queue:
        samples.add("fewshard_queue_items", [info.name], source.queue_items())
        samples.add("fewshard_inflight_items", [info.name], source.inflight_items())
        samples.add("fewshard_admission_limit_items", [info.name], source.admission_limit_items())
    what = [info.name, info.version, info.task, info.kind, info.architecture, info.dtype, info.device]
    samples.add("fewshard_model_info", what, 1)


def _sample_tally(samples: _Samples, tally: Tally) -> None:
    name = tally.info.name
    for label, count in zip(tally.info.labels, tally.by_label.tolist(), strict=True):
        samples.add("fewshard_predictions_total", [name, label], count)
    cumulative = tally.by_confidence.cumsum().tolist()
    for bound, count in zip([*CONFIDENCES, "+Inf"], cumulative, strict=True):
        samples.add("fewshard_confidence", [name], count, "_bucket", le=str(bound))
    samples.add("fewshard_confidence", [name], cumulative[-1], "_count")
    samples.add("fewshard_confidence", [name], tally.confidence_sum, "_sum")


def _sample_routing(samples: _Samples, source: ModelSource) -> None:
    model, routing = source.info.name, _routing_of(source)
    if routing is None:
        return
    for (layer, expert), count in np.ndenumerate(routing.total.tokens):
        samples.add("fewshard_expert_tokens_total", [model, layer, expert], int(count))
    for (layer, shard), count in np.ndenumerate(routing.total.by_shard):
        samples.add("fewshard_shard_tokens_total", [model, layer, shard], int(count))
    for name, ratios in (
        ("fewshard_expert_imbalance_ratio", imbalance_ratio(routing.window)),
        ("fewshard_router_entropy_ratio", entropy_ratio(routing.window)),
    ):
        for layer in np.flatnonzero(~np.isnan(ratios)).tolist():
            samples.add(name, [model, layer], float(ratios[layer]))


def _sample_group(samples: _Samples, source: ModelSource) -> None:
    group = source.group()
    if group is None:
        return
    samples.add("fewshard_group_size", [source.info.name], group.size)
    samples.add("fewshard_group_reforms_total", [source.info.name], group.num_reforms)
    samples.add("fewshard_placement_moves_total", [source.info.name], group.num_moves)


def _routing_of(source: ModelSource) -> Routing | None:
    try:
        return source.routing()
    except Exception:  # a failing device must not hide what is counted on the host
        logger.exception("%s: its routing counts cannot be read", source.info.name)
        return None


def _labelled(metric: Metric, labels: Mapping[str, str]) -> Metric:
    copy = Metric(metric.name, metric.documentation, metric.type)
    copy.samples = [sample._replace(labels={**sample.labels, **labels}) for sample in metric.samples]
    return copy


def merge_expositions(parts: Sequence[tuple[Mapping[str, str], bytes]]) -> bytes:
    """One Prometheus text of several, each with its labels added, and one HELP and TYPE a family.

    A part that cannot be parsed is left out and logged: one bad replica must not hide the others.
    """
    merged: dict[str, Metric] = {}
    for labels, text in parts:
        try:
            families = list(text_string_to_metric_families(text.decode()))
        except ValueError:
            logger.warning("left out the metrics of %s: they cannot be parsed", dict(labels))
            continue
        for family in families:
            labelled = _labelled(family, labels)
            merged.setdefault(family.name, Metric(family.name, family.documentation, family.type))
            merged[family.name].samples.extend(labelled.samples)
    return generate_latest(_Listed(merged.values()))
