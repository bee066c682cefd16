"""How many series a replica may have, and what is summed up where there would be more; pure.

docs/metrics.md has the formula. What every model has is bounded by itself; labels, experts and shards grow
with the model, and share what is left of `max_series`.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from fewshard_serve.metrics.settings import MetricsSettings

OTHER = "(other)"
"""The labels that are not told apart."""
MODEL_SERIES = 225
"""The most that one model has without labels, experts and shards; a test counts them."""
REPLICA_SERIES = 60
"""Build, process, and requests for models that there are not."""
GAUGES_A_LAYER = 5
"""Imbalance, entropy, dead experts, use, activation sparsity."""


@dataclass(frozen=True, slots=True)
class Shape:
    """What of a model grows: labels, and layers with their experts and shards."""

    num_labels: int
    num_layers: int = 0
    num_experts: int = 0
    num_shards: int = 0


@dataclass(frozen=True, slots=True)
class SeriesLimit:
    """What of a model is told apart: its first labels, and the experts of some layers."""

    num_labels: int
    expert_layers: tuple[int, ...]


def limit_series(shapes: Sequence[Shape], settings: MetricsSettings) -> list[SeriesLimit]:
    """Labels first, an equal part each of half of the room; then experts, a model at a time, all of its
    chosen layers or none. The same shapes always give the same, so that no counter changes its meaning."""
    fixed = sum(MODEL_SERIES + (GAUGES_A_LAYER + shape.num_shards) * shape.num_layers for shape in shapes)
    room = max(settings.max_series - REPLICA_SERIES - fixed, 0)
    labels = _share_labels([shape.num_labels for shape in shapes], room)
    room -= sum(labels)
    details = []
    for shape, num_labels in zip(shapes, labels, strict=True):
        layers = _wanted_layers(shape, settings)
        if len(layers) * shape.num_experts > room:
            layers = ()
        room -= len(layers) * shape.num_experts
        # The place of the last label is taken by the sum of those left out.
        details.append(SeriesLimit(num_labels - (num_labels < shape.num_labels), layers))
    return details


def _share_labels(wanted: Sequence[int], room: int) -> list[int]:
    """As many as wanted where all fit into half of the room, else the most that is equal for all."""
    most = max(wanted, default=0)
    while most > 1 and sum(min(each, most) for each in wanted) > room // 2:
        most -= max(1, most // 64)
    return [min(each, most) for each in wanted]


def _wanted_layers(shape: Shape, settings: MetricsSettings) -> tuple[int, ...]:
    if not settings.counts_experts:
        return ()
    layers = range(shape.num_layers) if settings.expert_layers is None else settings.expert_layers
    return tuple(layer for layer in layers if layer < shape.num_layers)
