"""A quantity that callers share fairly: the cost of heavy inputs, or the bytes of large bodies."""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

from fewshard_serve.core import ANYBODY, Caller

FAIR_ALPHA = 8
"""How many times what is free after its request a caller may hold."""


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
        self.add(amount, caller)
        try:
            yield
        finally:
            self.add(-amount, caller)

    def add(self, amount: int, caller: Caller) -> None:
        """Hold so much more, or give it back where it is negative. See `Share` for what changes its size."""
        self.used += amount
        self._held[caller] += amount
        if not self._held[caller]:
            del self._held[caller]


class Share:
    """What one request of a caller holds of a budget: nothing at first."""

    __slots__ = ("_budget", "_caller", "amount")

    def __init__(self, budget: Budget, caller: Caller) -> None:
        self.amount = 0
        self._budget = budget
        self._caller = caller

    def resize(self, amount: int) -> bool:
        """Hold this much from now on. Return False, and hold what was held, if there is no room for more."""
        more = amount - self.amount
        if more > 0 and not self._budget.has_room(more, self._caller):
            return False
        self._budget.add(more, self._caller)
        self.amount = amount
        return True

    def release(self) -> None:
        """Give everything back."""
        self.resize(0)
