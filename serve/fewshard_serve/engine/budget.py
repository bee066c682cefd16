"""A quantity that the callers of a model share fairly; the engine limits the cost of heavy inputs by it.

It asks before anything is prepared.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from fewshard_serve.core import ANYBODY, Caller
from fewshard_serve.engine.admission import FAIR_ALPHA

SLICE_COST = 16_384
"""The most that is prepared at a stretch: 16,384 characters of text or one megapixel, some 10 ms.

A single input that costs more is prepared alone. Such inputs are called heavy."""

UNIT_S = 1e-6
"""About as long takes a unit of cost: a character of text or 64 pixels."""


def heavy_cost(costs: Sequence[int]) -> int:
    """The sum of the costs of the heavy inputs."""
    return sum(cost for cost in costs if cost > SLICE_COST)


class Budget:
    """Holds at most `limit` at a time. Only the event loop's thread uses it, so it needs no lock.

    The rule between callers is that of admission (`FAIR_ALPHA`), counting what is asked for. While nothing is
    held, a request may take everything.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.used = 0
        self._held: Counter[Caller] = Counter()

    def has_room(self, amount: int, caller: Caller = ANYBODY) -> bool:
        """Whether this caller may hold so much more now."""
        if self.used == 0 or amount == 0:
            return amount <= self.limit
        free = self.limit - self.used - amount
        if free < 0:
            return False
        return caller.is_urgent or self._held[caller] + amount <= FAIR_ALPHA * free

    @contextmanager
    def held(self, amount: int, caller: Caller = ANYBODY) -> Iterator[None]:
        """Hold so much during the body. The caller must have room."""
        self.used += amount
        self._held[caller] += amount
        try:
            yield
        finally:
            self.used -= amount
            self._held[caller] -= amount
            if not self._held[caller]:
                del self._held[caller]
