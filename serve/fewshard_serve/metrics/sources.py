"""Writes the samples that a scrape reads from each model: gauges, predictions, experts, energy and cost.

The recorder calls it at every scrape.
"""

import logging
import os
import platform
import shutil
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import psutil

from fewshard_core.values import ModelInfo
from fewshard_serve import __version__
from fewshard_serve.core import GroupState
from fewshard_serve.expert_statistics import (
    Routing,
    entropy_ratio,
    expert_use_ratio,
    imbalance_ratio,
    num_dead_experts,
    worst_layers,
)
from fewshard_serve.metrics.cardinality_limit import ALL_LAYERS, OTHER, SeriesLimit
from fewshard_serve.metrics.exposition import TextWriter
from fewshard_serve.metrics.prediction_stats import PredictionStats, confidence_drift, label_drift
from fewshard_serve.metrics.settings import CostSettings

logger = logging.getLogger(__name__)

DEFAULT_RAY_FOLDER = "/tmp"
"""Where Ray keeps its sessions unless it is told otherwise."""


@dataclass(frozen=True, slots=True)
class ModelSource:
    """Where a scrape reads what is not counted per request. The scraping thread calls the functions.

    queue_items, inflight_items, admission_limit_items: the gauges of the model's queue.
    is_ready: whether it takes requests.
    has_queue: false for a cascade, which calls other models and admits and queues nothing itself.
    routing: the expert counts; None for a model without experts.
    group: the state of the shards; None for a model that is not sharded.
    sparsity: activation sparsity by layer, over the last sampled items.
    cost: what the replica costs while it computes.
    """

    info: ModelInfo
    queue_items: Callable[[], int]
    inflight_items: Callable[[], int]
    admission_limit_items: Callable[[], int]
    is_ready: Callable[[], bool] = lambda: True
    has_queue: bool = True
    routing: Callable[[], Routing | None] = lambda: None
    group: Callable[[], GroupState | None] = lambda: None
    sparsity: Callable[[], Mapping[int, float]] = dict
    cost: CostSettings = CostSettings()  # noqa: RUF009  it is frozen


def write_model(out: TextWriter, source: ModelSource) -> None:
    """The gauges of its queue, and what the model and its card say about it."""
    info, name = source.info, source.info.name
    if source.has_queue:
        out.add("fewshard_queue_items", [name], source.queue_items())
        out.add("fewshard_inflight_items", [name], source.inflight_items())
        out.add("fewshard_admission_limit_items", [name], source.admission_limit_items())
    out.add("fewshard_model_ready", [name], int(source.is_ready()))
    what = [name, info.version, info.task, info.kind, info.architecture, info.dtype, info.device]
    out.add("fewshard_model_info", what, 1)
    for metric, labels, key in (
        ("fewshard_model_accuracy_ratio", [name], "accuracy"),
        ("fewshard_model_macs", [name], "macs"),
        ("fewshard_model_parameters", [name, "total"], "parameters_total"),
        ("fewshard_model_parameters", [name, "active"], "parameters_active"),
    ):
        value = info.card.get(key)
        if isinstance(value, int | float):
            out.add(metric, labels, value)


def write_tally(out: TextWriter, tally: PredictionStats, detail: SeriesLimit) -> None:
    """Predictions by label, confidence and drift. Labels beyond `detail.num_labels` are summed up as one.

    So are labels of one name ("crane" of ImageNet is a bird and a machine), since a series must be unique.
    """
    info, (total, recent) = tally.info, tally.read()
    by_name: Counter[str] = Counter()
    for label, count in zip(info.labels[: detail.num_labels], total.by_label.tolist(), strict=False):
        by_name[label] += count
    if detail.num_labels < len(info.labels):
        by_name[OTHER] += int(total.by_label[detail.num_labels :].sum())
    for label, count in by_name.items():
        out.add("fewshard_predictions_total", [info.name, label], count)
    out.add_histogram("fewshard_confidence", [info.name], total.by_confidence.tolist(), total.confidence)
    for metric, drift in (
        ("fewshard_label_drift_ratio", label_drift(recent, info)),
        ("fewshard_confidence_drift_ratio", confidence_drift(recent, info)),
    ):
        if drift is not None:
            out.add(metric, [info.name], drift)


def write_routing(out: TextWriter, source: ModelSource, routing: Routing, detail: SeriesLimit) -> None:
    """Counters by expert (as `detail` says) and by shard, and the last minute's ratios by layer."""
    name = source.info.name
    for layer in detail.expert_layers:
        for expert, count in enumerate(routing.total.tokens[layer].tolist()):
            out.add("fewshard_expert_tokens_total", [name, layer, expert], count)
    if detail.sums_experts:
        for expert, count in enumerate(routing.total.tokens.sum(axis=0).tolist()):
            out.add("fewshard_expert_tokens_total", [name, ALL_LAYERS, expert], count)
    for layer in worst_layers(routing.window, detail.num_worst_layers):
        tokens = routing.window.tokens[layer]
        for expert, share in enumerate((tokens / tokens.sum()).tolist()):
            out.add("fewshard_expert_share_ratio", [name, layer, expert], share)
    for (layer, shard), count in np.ndenumerate(routing.total.by_shard):
        out.add("fewshard_shard_tokens_total", [name, layer, shard], int(count))
    for metric, ratios in (
        ("fewshard_expert_imbalance_ratio", imbalance_ratio(routing.window)),
        ("fewshard_router_entropy_ratio", entropy_ratio(routing.window)),
        ("fewshard_dead_experts", num_dead_experts(routing.window)),
        ("fewshard_expert_use_ratio", expert_use_ratio(routing.window)),
    ):
        for layer in np.flatnonzero(~np.isnan(ratios)).tolist():
            out.add(metric, [name, layer], float(ratios[layer]))


def routing_of(source: ModelSource) -> Routing | None:
    """The model's expert counts; None if it has no experts or its device fails."""
    try:
        return source.routing()
    except Exception:  # a failing device must not hide the counts that are kept in this process
        logger.exception("%s: its routing counts cannot be read", source.info.name)
        return None


def write_group(out: TextWriter, source: ModelSource) -> None:
    """The state of the shards; nothing for a model that is not sharded."""
    group, name = source.group(), source.info.name
    if group is None:
        return
    out.add("fewshard_group_size", [name], group.size)
    out.add("fewshard_group_shards", [name], group.num_shards)
    out.add("fewshard_group_degraded", [name], int(group.is_degraded))
    out.add("fewshard_group_reforms_total", [name], group.num_reforms)
    out.add("fewshard_placement_moves_total", [name], group.num_moves)


def write_sparsity(out: TextWriter, source: ModelSource) -> None:
    """The activation sparsity of the sampled layers."""
    for layer, share in source.sparsity().items():
        out.add("fewshard_activation_sparsity_ratio", [source.info.name, layer], share)


def write_cost(out: TextWriter, source: ModelSource, busy_s: float, measured_joules: float | None) -> None:
    """Energy and price of `busy_s`, the seconds in forward passes; nothing if neither is known."""
    name, cost = source.info.name, source.cost
    if measured_joules is not None:
        out.add("fewshard_energy_joules_total", [name, "measured"], measured_joules)
    elif cost.watts is not None:
        out.add("fewshard_energy_joules_total", [name, "modelled"], cost.watts * busy_s)
    if cost.usd_per_hour is not None:
        out.add("fewshard_cost_usd_total", [name], cost.usd_per_hour * busy_s / 3600)


def write_process(out: TextWriter, children: Sequence[int] = ()) -> None:
    """The version, the CPU time and memory of this process and its children, and the room left on its disk.

    The CPU time includes children that have ended.
    """
    out.add("fewshard_build_info", [__version__, platform.python_version()], 1)
    ended = os.times()
    cpu_s = time.process_time() + ended.children_user + ended.children_system
    resident_bytes = psutil.Process().memory_info().rss
    for child_cpu_s, child_bytes in map(_use_of, children):
        cpu_s += child_cpu_s
        resident_bytes += child_bytes
    out.add("fewshard_process_cpu_seconds_total", [], cpu_s)
    out.add("fewshard_process_resident_bytes", [], resident_bytes)
    out.add("fewshard_disk_free_bytes", [], _free_bytes(os.environ.get("RAY_TMPDIR") or DEFAULT_RAY_FOLDER))


def _free_bytes(folder: str) -> int:
    """Return how much can still be written to a folder's disk; 0 if nothing can."""
    try:
        return shutil.disk_usage(folder).free if os.access(folder, os.W_OK) else 0
    except OSError:
        return 0


def _use_of(pid: int) -> tuple[float, int]:
    """CPU seconds and resident bytes of a process; zeros if it has ended."""
    try:
        process = psutil.Process(pid)
        with process.oneshot():
            times = process.cpu_times()
            return times.user + times.system, process.memory_info().rss
    except psutil.Error:
        return 0.0, 0
