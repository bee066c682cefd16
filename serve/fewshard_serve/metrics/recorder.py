"""The metrics of one process: the server reports requests and batches, and a scrape renders the text."""

import logging
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from fewshard_serve.core import BatchStats, Timings
from fewshard_serve.expert_statistics import Routing
from fewshard_serve.metrics import sources
from fewshard_serve.metrics.cardinality_limit import SeriesLimit, Shape, limit_series
from fewshard_serve.metrics.definitions import BY_NAME, Counter, Histogram
from fewshard_serve.metrics.energy import MeasuredEnergy
from fewshard_serve.metrics.exposition import TextWriter
from fewshard_serve.metrics.prediction_stats import PredictionStats
from fewshard_serve.metrics.settings import MetricsSettings
from fewshard_serve.metrics.sources import ModelSource

logger = logging.getLogger(__name__)

STAGES = ("preprocess", "queue", "infer")


class Metrics:
    """All metrics of this process. Any thread may call any method.

    settings: what is reported.
    read_joules: reads the device's energy counter; None if it has none.
    children: returns the process ids of this process's workers.
    """

    def __init__(
        self,
        settings: MetricsSettings = MetricsSettings(),  # noqa: B008  it is frozen
        read_joules: Callable[[], float] | None = None,
        children: Callable[[], Sequence[int]] = tuple,
    ) -> None:
        self._children = children
        self._settings = settings
        self._energy = None if read_joules is None else MeasuredEnergy(read_joules)
        self._lock = threading.Lock()
        self._sources: dict[str, ModelSource] = {}
        self._predictions: dict[str, PredictionStats] = {}
        self._left_out: dict[str, str] = {}
        self._failed: list[str] = []
        self._requests = Counter(BY_NAME["fewshard_requests_total"])
        self._items = Counter(BY_NAME["fewshard_items_total"])
        self._tokens = Counter(BY_NAME["fewshard_tokens_total"])
        self._infer_seconds = Counter(BY_NAME["fewshard_infer_seconds_total"])
        self._shadow_items = Counter(BY_NAME["fewshard_shadow_items_total"])
        self._canary_requests = Counter(BY_NAME["fewshard_canary_requests_total"])
        self._canary_steps = Counter(BY_NAME["fewshard_canary_steps_total"])
        self._canary_weight = Counter(BY_NAME["fewshard_canary_weight_ratio"])
        self._cascade_items = Counter(BY_NAME["fewshard_cascade_items_total"])
        self._cascade_macs = Counter(BY_NAME["fewshard_cascade_macs_total"])
        self._request_seconds = Histogram(BY_NAME["fewshard_request_seconds"])
        self._stage_seconds = Histogram(BY_NAME["fewshard_stage_seconds"])
        self._batch_items = Histogram(BY_NAME["fewshard_batch_items"])
        self._batch_tokens = Histogram(BY_NAME["fewshard_batch_tokens"])

    def add_model(self, source: ModelSource) -> None:
        """Start to report a model. Its gauges are read at every scrape."""
        self._predictions[source.info.name] = PredictionStats(source.info)
        self._sources[source.info.name] = source

    def add_failed(self, models: Iterable[str]) -> None:
        """Report models that could not be loaded as not ready."""
        self._failed.extend(models)

    def observe_request(
        self, model: str, protocol: str, outcome: str, seconds: float, trace_id: str = ""
    ) -> None:
        """Record an answered or refused request. `trace_id` becomes the exemplar of its bucket."""
        if self._settings.enabled:
            with self._lock:
                self._requests.add((model, protocol, outcome))
                self._request_seconds.add((model,), seconds, trace_id)

    def observe_timings(self, model: str, timings: Timings) -> None:
        """Record the time that an answered request spent in each stage."""
        if self._settings.enabled:
            seconds = (timings.preprocess_s, timings.queue_s, timings.infer_s)
            with self._lock:
                for stage, spent in zip(STAGES, seconds, strict=True):
                    self._stage_seconds.add((model, stage), spent)

    def observe_batch(self, stats: BatchStats) -> None:
        """Record one forward pass."""
        if self._settings.enabled:
            model = (stats.model,)
            with self._lock:
                self._items.add(model, stats.num_items)
                self._tokens.add((stats.model, "real"), stats.num_tokens)
                self._tokens.add((stats.model, "padding"), stats.num_padding_tokens)
                self._infer_seconds.add(model, stats.infer_s)
                self._batch_items.add(model, stats.num_items)
                self._batch_tokens.add(model, stats.num_tokens)

    def observe_predictions(self, model: str, logits: NDArray[np.float32]) -> None:
        """Record one request's logits [num_items, num_labels]. They are read later: do not change them."""
        if self._settings.enabled:
            self._predictions[model].add(logits)

    def observe_shadow(self, model: str, shadow: str, outcome: str, num_items: int) -> None:
        """Record items and the outcome of comparing their answers with the shadow's."""
        with self._lock:
            self._shadow_items.add((model, shadow, outcome), num_items)

    def observe_canary(self, model: str, version: str, outcome: str) -> None:
        """Record a request that both versions were given."""
        with self._lock:
            self._canary_requests.add((model, version, outcome), 1)

    def observe_canary_step(self, model: str, version: str, step: str, weight: float) -> None:
        """Record a step, and the part of the requests that the new version has from then on."""
        with self._lock:
            self._canary_steps.add((model, version, step), 1)
            self._canary_weight.values[model, version] = weight

    def observe_cascade(self, model: str, items: Mapping[str, int], macs: float, macs_of_last: float) -> None:
        """Record an answered request of a cascade.

        items: the number of items that each stage answered.
        macs, macs_of_last: MACs spent, and MACs that the last stage alone would take; 0 if unknown.
        """
        with self._lock:
            for stage, num_items in items.items():
                self._cascade_items.add((model, stage), num_items)
            if macs_of_last:
                self._cascade_macs.add((model, "spent"), macs)
                self._cascade_macs.add((model, "last_stage_alone"), macs_of_last)

    def render(self, extra_labels: Mapping[str, str] | None = None, is_open_metrics: bool = False) -> bytes:
        """Render the text, with `extra_labels` on every sample.

        It may wait for a device, so do not call it on the event loop. The format is Prometheus' own (0.0.4),
        or OpenMetrics without its last line, which can carry exemplars.
        """
        out = TextWriter(extra_labels, is_open_metrics)
        sources.write_process(out, self._children())
        self._write_counted(out)
        self._write_models(out)
        return out.text()

    def _write_counted(self, out: TextWriter) -> None:
        with self._lock:
            counters = [(each.family.name, list(each.values.items())) for each in self._counters()]
            histograms = [(each.family.name, list(each.copied())) for each in self._histograms()]
        for name, values in counters:
            for labels, value in values:
                out.add(name, labels, value)
        for name, copies in histograms:
            for labels, counts, total, exemplars in copies:
                out.add_histogram(name, labels, counts, total, exemplars)

    def _write_models(self, out: TextWriter) -> None:
        for name in self._failed:
            out.add("fewshard_model_ready", [name], 0)
        known = list(self._sources.values())
        routings = [sources.routing_of(source) for source in known]
        shapes = [
            Shape(len(source.info.labels), *_routed_shape(routing))
            for source, routing in zip(known, routings, strict=True)
        ]
        with self._lock:
            busy_s = {source.info.name: self._busy_s(source.info.name) for source in known}
        joules = {} if self._energy is None else self._energy.update(busy_s)
        details = limit_series(shapes, self._settings)
        self._report_left_out([source.info.name for source in known], shapes, details)
        for source, routing, detail in zip(known, routings, details, strict=True):
            name = source.info.name
            sources.write_model(out, source)
            sources.write_tally(out, self._predictions[name], detail)
            if routing is not None:
                sources.write_routing(out, source, routing, detail)
            sources.write_group(out, source)
            sources.write_sparsity(out, source)
            sources.write_cost(out, source, busy_s[name], joules.get(name))

    def _report_left_out(
        self, names: Sequence[str], shapes: Sequence[Shape], details: Sequence[SeriesLimit]
    ) -> None:
        """Log what the limit leaves out, once for each model and change."""
        for name, shape, detail in zip(names, shapes, details, strict=True):
            left_out = detail.left_out(shape, self._settings)
            if left_out != self._left_out.get(name, ""):
                self._left_out[name] = left_out
                logger.warning("%s: in /metrics %s; raise metrics.max_series to see more", name, left_out)

    def _busy_s(self, model: str) -> float:
        return self._infer_seconds.values.get((model,), 0.0)

    def _counters(self) -> Iterable[Counter]:
        yield from (self._requests, self._items, self._tokens, self._infer_seconds)
        yield from (self._shadow_items, self._cascade_items, self._cascade_macs)
        yield from (self._canary_requests, self._canary_steps, self._canary_weight)

    def _histograms(self) -> Iterable[Histogram]:
        yield from (self._request_seconds, self._stage_seconds, self._batch_items, self._batch_tokens)


def _routed_shape(routing: Routing | None) -> tuple[int, ...]:
    """The numbers of layers, experts and shards; empty for a model without experts."""
    if routing is None:
        return ()
    return (*routing.total.tokens.shape, routing.total.by_shard.shape[1])
