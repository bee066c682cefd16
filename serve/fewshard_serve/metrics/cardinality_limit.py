"""Limits the number of series of a replica to `max_series`, by summing up labels and leaving out experts.

Pure functions; the recorder calls them at every scrape. docs/metrics.md has the formula. Most series of a
model are fixed in number. Those by label, expert and shard grow with the model and share the rest, but for
those of small models: few labels and few experts are always told apart, however many models there are.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from fewshard_serve.metrics.settings import MetricsSettings

ALL_LAYERS = "(all)"
"""The label of an expert's sum over layers, where there is no room for each."""
OTHER = "(other)"
"""The label of the series that sums up the labels without a series of their own."""
MODEL_SERIES = 238
"""The most series of one model without those by label, expert and shard; a test counts them."""
REPLICA_SERIES = 60
"""Series of the build, of the process, and of requests for unknown models."""
SMALL = 24
"""So many labels, or experts over all layers, are always told apart."""
WORST_LAYERS = 8
"""The most layers of a large model whose experts are shown one by one."""
GAUGES_A_LAYER = 5
"""Imbalance, entropy, dead experts, use, activation sparsity."""


@dataclass(frozen=True, slots=True)
class Shape:
    """The sizes of a model that its number of series depends on."""

    num_labels: int
    num_layers: int = 0
    num_experts: int = 0
    num_shards: int = 0


@dataclass(frozen=True, slots=True)
class SeriesLimit:
    """The series that one model may have.

    num_labels: how many labels, from the first on, get a series of their own.
    expert_layers: the layers whose experts get series of their own.
    sums_experts: whether each expert has a series of its sum over all layers instead.
    num_worst_layers: of so many layers, the least even ones, each expert's share is then shown.
    """

    num_labels: int
    expert_layers: tuple[int, ...]
    sums_experts: bool = False
    num_worst_layers: int = 0

    def left_out(self, shape: Shape, settings: MetricsSettings) -> str:
        """What has no series of its own although it should; "" if nothing."""
        labels = shape.num_labels - self.num_labels
        experts = len(_wanted_layers(shape, settings)) > len(self.expert_layers)
        parts = [f"{labels} of {shape.num_labels} labels are summed up as {OTHER}"] if labels else []
        if experts and self.sums_experts:
            parts.append(f"experts are summed up over layers, but for {self.num_worst_layers} of the worst")
        elif experts:
            parts.append("the experts have no series")
        return "; ".join(parts)


def limit_series(shapes: Sequence[Shape], settings: MetricsSettings) -> list[SeriesLimit]:
    """Divide the series that are left between the models, in their order.

    Labels come first: they share at most half of the series equally. Experts follow, one model at a time:
    either all of its chosen layers, or their sums over layers, or none. The worst layers get what is left
    then. Equal shapes give equal results, so a counter keeps its meaning.
    """
    remaining = settings.max_series - REPLICA_SERIES - sum(_fixed_series(shape, settings) for shape in shapes)
    remaining = max(remaining, 0)
    labels = _share_labels([shape.num_labels for shape in shapes], remaining)
    remaining -= sum(each for each, shape in zip(labels, shapes, strict=True) if shape.num_labels > SMALL)
    details: list[SeriesLimit] = []
    for shape, num_labels in zip(shapes, labels, strict=True):
        layers, num_series = _wanted_layers(shape, settings), _num_expert_series(shape, settings)
        has_sums = False
        if num_series > SMALL:
            has_sums = num_series > remaining >= shape.num_experts
            layers = layers if num_series <= remaining else ()
            remaining -= shape.num_experts * (1 if has_sums else len(layers))
        # Reserve the last series for `OTHER`, the sum of the labels that did not fit.
        details.append(SeriesLimit(num_labels - (num_labels < shape.num_labels), layers, has_sums))
    for number, (shape, detail) in enumerate(zip(shapes, details, strict=True)):
        if detail.sums_experts:
            num_worst = min(WORST_LAYERS, shape.num_layers, remaining // shape.num_experts)
            remaining -= num_worst * shape.num_experts
            details[number] = replace(detail, num_worst_layers=num_worst)
    return details


def _fixed_series(shape: Shape, settings: MetricsSettings) -> int:
    """The series of a model that do not depend on the other models."""
    small = [shape.num_labels, _num_expert_series(shape, settings)]
    by_layer = (GAUGES_A_LAYER + shape.num_shards) * shape.num_layers
    return MODEL_SERIES + by_layer + sum(each for each in small if each <= SMALL)


def _share_labels(wanted: Sequence[int], remaining: int) -> list[int]:
    """The number of labels of each model: all, if they are few or fit half of `remaining`, else an equal
    maximum."""
    large = [each for each in wanted if each > SMALL]
    most = max(large, default=0)
    while most > 1 and sum(min(each, most) for each in large) > remaining // 2:
        most -= max(1, most // 64)
    return [each if each <= SMALL else min(each, most) for each in wanted]


def _num_expert_series(shape: Shape, settings: MetricsSettings) -> int:
    return len(_wanted_layers(shape, settings)) * shape.num_experts


def _wanted_layers(shape: Shape, settings: MetricsSettings) -> tuple[int, ...]:
    if not settings.counts_experts:
        return ()
    layers = range(shape.num_layers) if settings.expert_layers is None else settings.expert_layers
    return tuple(layer for layer in layers if layer < shape.num_layers)
