"""Admission control: limits the items and tokens in flight so that no request waits too long.

The engine calls `Admission.admit` with an estimate of the tokens, before it tokenises.

The limit adapts to measured waits, as `adaptive_share` says.

Callers share the capacity by a dynamic threshold (Choudhury, Hahne: "Dynamic queue length thresholds for
shared-memory packet switches", IEEE/ACM Transactions on Networking 6(2), 1998): a caller may hold up to
`FAIR_ALPHA` times the capacity that is free after its request. A single caller gets all of it, many callers
get equal parts. Callers who would hold little (`SMALL_PART`) are let in even where the others hold all of it,
so that neither a flood nor a limit that has just fallen keeps them out.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType

from fewshard_serve.core import ANYBODY, Caller
from fewshard_serve.engine.adaptive_share import AdaptiveShare, RecentRate
from fewshard_serve.errors import Overloaded, TooLarge
from fewshard_serve.fairness import FAIR_ALPHA

MIN_RETRY_AFTER_S = 0.1
MAX_RETRY_AFTER_S = 30.0
UNMEASURED_RETRY_AFTER_S = 1.0
SMALL_PART = 4
"""A caller is always let in who then holds no more than an equal part of the limit divided by this number.
Together such callers exceed the limit by a quarter at most."""
START_ITEMS = 512
"""The limit until waits are measured: a slow device must not accept more work than it can do in time."""


@dataclass(slots=True)
class _Room:
    """An amount of work in items and in tokens."""

    items: int = 0
    tokens: int = 0

    def add(self, items: int, tokens: int) -> None:
        self.items += items
        self.tokens += tokens


_NOTHING = _Room()


class Ticket:
    """The capacity that a request holds. A context manager; leaving it without an error counts as served."""

    def __init__(
        self, admission: "Admission", caller: Caller, num_items: int, num_tokens: int, admitted_at: float
    ) -> None:
        self.caller = caller
        self.num_items = num_items
        self.num_tokens = num_tokens
        self.admitted_at = admitted_at
        self.load = admission.load
        self._admission = admission
        self._is_released = False

    def note_wait(self, wait_s: float) -> None:
        """Record that the request left the queue after `wait_s` seconds, so that the limit adapts."""
        self._admission._observe(self, wait_s)

    def release(self, served: bool = True) -> None:
        """Return the capacity. A second call does nothing."""
        if not self._is_released:
            self._is_released = True
            self._admission._release(self, served)

    def __enter__(self) -> "Ticket":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release(served=kind is None)


class Admission:
    """Admission control of one model. Only the event loop's thread uses it, so it needs no lock.

    max_items, max_tokens: the configured limits of what may be in flight.
    limit_items, limit_tokens: the current limits; they adapt so that requests wait `target_wait_s` at most.
    min_items: the current limit of items never falls below this.
    """

    def __init__(
        self,
        model: str,
        max_items: int,
        max_tokens: int,
        clock: Callable[[], float] = time.monotonic,
        *,
        min_items: int = 1,
        target_wait_s: float = 2.5,
    ) -> None:
        self.max_items = max_items
        self.max_tokens = max_tokens
        self._used = _Room()
        self._held: dict[Caller, _Room] = {}
        self._model = model
        self._clock = clock
        self._served = RecentRate()
        self._served_tokens = RecentRate()
        floor, start = min_items / max_items, START_ITEMS / max_items
        self._adaptive = AdaptiveShare(min(floor, 1.0), start, target_wait_s, clock, self._served_share)

    @property
    def num_items(self) -> int:
        return self._used.items

    @property
    def num_tokens(self) -> int:
        return self._used.tokens

    @property
    def limit_items(self) -> int:
        return max(1, round(self.max_items * self._adaptive.share))

    @property
    def limit_tokens(self) -> int:
        return max(1, round(self.max_tokens * self._adaptive.share))

    @property
    def load(self) -> float:
        """The share of the configured limit that is in flight, in items or tokens, whichever is larger."""
        return max(self._used.items / self.max_items, self._used.tokens / self.max_tokens)

    def check(self, caller: Caller = ANYBODY) -> None:
        """Raise `Overloaded` if not even one item would be admitted. This is the cheapest refusal."""
        if not self._has_room(caller, 1, 0):
            raise self._overloaded()

    def admit(self, num_items: int, num_tokens: int, caller: Caller = ANYBODY) -> Ticket:
        """Reserve capacity. Raises `TooLarge` (could never fit) or `Overloaded` (retry later)."""
        self._check_size("items", num_items, self.max_items)
        self._check_size("tokens", num_tokens, self.max_tokens)
        if not self._has_room(caller, num_items, num_tokens):
            raise self._overloaded()
        self._used.add(num_items, num_tokens)
        self._held.setdefault(caller, _Room()).add(num_items, num_tokens)
        return Ticket(self, caller, num_items, num_tokens, self._clock())

    def note_refusals(self) -> None:
        """Record that HAProxy refused requests because of this limit, so that the limit may grow."""
        self._adaptive.note_refusal()

    def _release(self, ticket: Ticket, served: bool) -> None:
        held = self._held[ticket.caller]
        for room in (self._used, held):
            room.add(-ticket.num_items, -ticket.num_tokens)
        assert held.items >= 0, "more items released than admitted. This is a bug."
        if held.items == 0:
            del self._held[ticket.caller]
        if served:
            now = self._clock()
            self._served.add(ticket.num_items, now)
            self._served_tokens.add(ticket.num_tokens, now)

    def _observe(self, ticket: Ticket, wait_s: float) -> None:
        self._adaptive.observe(wait_s, ticket.load)

    def _served_share(self) -> float:
        """What is served within the target wait, as a share of the configured limits."""
        now = self._clock()
        items, tokens = self._served.per_second(now), self._served_tokens.per_second(now)
        return self._adaptive.target_s * max(items / self.max_items, tokens / self.max_tokens)

    def _has_room(self, caller: Caller, num_items: int, num_tokens: int) -> bool:
        if self._used.items == 0:
            return True  # otherwise a request above the current limit could never be admitted
        held = self._held.get(caller, _NOTHING)
        items, tokens = held.items + num_items, held.tokens + num_tokens
        parts = SMALL_PART * (len(self._held) + (held is _NOTHING))
        if items * parts <= self.limit_items and tokens * parts <= self.limit_tokens:
            return True
        free_items = self.limit_items - self._used.items - num_items
        free_tokens = self.limit_tokens - self._used.tokens - num_tokens
        if free_items < 0 or free_tokens < 0:
            return False
        if held is _NOTHING or held.items == self._used.items or caller.is_urgent:
            return True
        return items <= FAIR_ALPHA * free_items and tokens <= FAIR_ALPHA * max(free_tokens, 1)

    def _check_size(self, unit: str, asked: int, limit: int) -> None:
        if asked > limit:
            raise TooLarge(
                f"the request holds {asked} {unit} and {self._model!r} admits at most {limit} at a time; "
                f"split the request"
            )

    def _overloaded(self) -> Overloaded:
        self._adaptive.note_refusal()
        wait_s = self.retry_after_s()
        return Overloaded(
            f"{self._model!r} has {self.num_items} of {self.limit_items} items and {self.num_tokens} of "
            f"{self.limit_tokens} tokens in flight; retry in {wait_s:.1f} s",
            wait_s,
        )

    def retry_after_s(self) -> float:
        """Seconds until the items in flight are served at the recent rate, clamped to sensible bounds."""
        rate = self._served.per_second(self._clock())
        if rate == 0.0:
            return UNMEASURED_RETRY_AFTER_S
        return min(max(self.num_items / rate, MIN_RETRY_AFTER_S), MAX_RETRY_AFTER_S)
