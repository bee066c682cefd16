"""From which cost on an input is heavy; the engine asks before it prepares any."""

from collections.abc import Sequence

SLICE_COST = 16_384
"""The most that is prepared at a stretch: 16,384 characters of text or one megapixel, some 10 ms.

A single input that costs more is prepared alone. Such inputs are called heavy."""

UNIT_S = 1e-6
"""About as long takes a unit of cost: a character of text or 64 pixels."""


def heavy_cost(costs: Sequence[int]) -> int:
    """The sum of the costs of the heavy inputs."""
    return sum(cost for cost in costs if cost > SLICE_COST)
