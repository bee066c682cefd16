"""Limits the number of series of a replica to `max_series`, by summing up labels and leaving out experts.

Pure functions; the recorder calls them at every scrape. docs/metrics.md has the formula. Most series of a
model are fixed in number. Those by label, expert and shard grow with the model and share the rest, but for
those of small models: few labels and few experts are always told apart, however many models there are.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from fewshard_serve.metrics.settings import MetricsSettings

OTHER = "(other)"
"""The label of the series that sums up the labels without a series of their own."""
MODEL_SERIES = 238
"""The most series of one model without those by label, expert and shard; a test counts them."""
REPLICA_SERIES = 60
"""Series of the build, of the process, and of requests for unknown models."""
SMALL = 24
"""So many labels, or experts over all layers, are always told apart."""
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
    """

    num_labels: int
    expert_layers: tuple[int, ...]

    def left_out(self, shape: Shape, settings: MetricsSettings) -> str:
        """What has no series of its own although it should; "" if nothing."""
        labels = shape.num_labels - self.num_labels
        experts = len(_wanted_layers(shape, settings)) > len(self.expert_layers)
        parts = [f"{labels} of {shape.num_labels} labels are summed up as {OTHER}"] if labels else []
        return "; ".join([*parts, "the experts have no series"] if experts else parts)


def limit_series(shapes: Sequence[Shape], settings: MetricsSettings) -> list[SeriesLimit]:
    """Divide the series that are left between the models, in their order.

    Labels come first: they share at most half of the series equally. Experts follow, one model at a time:
    either all of its chosen layers or none. Equal shapes give equal results, so a counter keeps its meaning.
    """
    remaining = settings.max_series - REPLICA_SERIES - sum(_fixed_series(shape, settings) for shape in shapes)
    remaining = max(remaining, 0)
    labels = _share_labels([shape.num_labels for shape in shapes], remaining)
    remaining -= sum(each for each, shape in zip(labels, shapes, strict=True) if shape.num_labels > SMALL)
    details = []
    for shape, num_labels in zip(shapes, labels, strict=True):
        layers, num_series = _wanted_layers(shape, settings), _num_expert_series(shape, settings)
        if num_series > SMALL:
            layers = layers if num_series <= remaining else ()
            remaining -= len(layers) * shape.num_experts
        # Reserve the last series for `OTHER`, the sum of the labels that did not fit.
        details.append(SeriesLimit(num_labels - (num_labels < shape.num_labels), layers))
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
