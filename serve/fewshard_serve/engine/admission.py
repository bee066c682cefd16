"""Admission control: limits the items and tokens in flight so that no request waits too long.

The engine calls `Admission.admit` with an estimate of the tokens, before it tokenises.

The limit adapts to measured waits. It is a gradient limit, as in network congestion control (Jacobson:
"Congestion avoidance and control", SIGCOMM 1988) and in Netflix's `concurrency-limits`. By Little's law, the
wait is the number in flight divided by the rate served, so the limit is scaled by the target wait divided by
the measured wait.

Callers share the capacity by a dynamic threshold (Choudhury, Hahne: "Dynamic queue length thresholds for
shared-memory packet switches", IEEE/ACM Transactions on Networking 6(2), 1998): a caller may hold up to
`FAIR_ALPHA` times the capacity that is free after its request. A single caller gets all of it, many callers
get equal parts. Callers who would hold little (`SMALL_PART`) are let in even where the others hold everything,
so that neither a flood nor a limit that has just fallen keeps them out.
"""

import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType

from fewshard_serve.core import ANYBODY, Caller
from fewshard_serve.errors import Overloaded, TooLarge

MIN_WINDOW_S = 0.1
MAX_GROWTH = 2.0
MAX_CUT = 8.0
"""The factors by which one step may raise or lower the limit: one outlier must not block for long."""


class AdaptiveShare:
    """The share of the configured limits that may be used now, from `floor` to 1.

    It falls as soon as a request has waited longer than `target_s` seconds. It grows after a window in which
    requests were refused and none waited too long; a window lasts as long as the longest wait in it. It does
    not grow beyond `served()`, the share that is served within the target wait. Little's law (`served`) also
    covers load that queue waits do not show yet: requests still being read, and requests admitted since the
    last adjustment.
    """

    def __init__(
        self,
        floor: float,
        start: float,
        target_s: float,
        clock: Callable[[], float],
        served: Callable[[], float] = lambda: 1.0,
    ) -> None:
        self.share = max(floor, min(start, 1.0))
        self.target_s = target_s
        self._floor = floor
        self._clock = clock
        self._served = served
        self._has_refused = False
        self._longest_s = 0.0
        self._changed_at, self._window_from = float("-inf"), clock()

    def note_refusal(self) -> None:
        """Record that the limit refused a request."""
        self._has_refused = True

    def observe(self, wait_s: float, load: float) -> None:
        """Record that a request left the queue after `wait_s` seconds.

        load: the share of the limits in use just after the request was admitted.
        """
        self._longest_s = max(self._longest_s, wait_s)
        now = self._clock()
        if wait_s > self.target_s:
            if now - self._changed_at >= MIN_WINDOW_S:
                self._change(min(self.share, load * self.target_s / wait_s), now)
        elif now - self._window_from >= max(MIN_WINDOW_S, self._longest_s):
            self._end_window(now)

    def _end_window(self, now: float) -> None:
        if self._has_refused and self._longest_s <= self.target_s:
            wanted = self.share * self.target_s / max(self._longest_s, 1e-9)
            self._change(max(self.share, min(wanted, self._served())), now)
        self._begin_window(now)

    def _change(self, share: float, now: float) -> None:
        step = min(max(share, self.share / MAX_CUT), self.share * MAX_GROWTH)
        self.share = min(max(step, self._floor), 1.0)
        self._changed_at = now
        self._begin_window(now)

    def _begin_window(self, now: float) -> None:
        self._window_from = now
        self._longest_s = 0.0
        self._has_refused = False


MIN_RETRY_AFTER_S = 0.1
MAX_RETRY_AFTER_S = 30.0
UNMEASURED_RETRY_AFTER_S = 1.0
FAIR_ALPHA = 8
SMALL_PART = 4
"""A caller is always let in who then holds no more than an equal part of the limit divided by this number.
Together such callers exceed the limit by a quarter at most."""
START_ITEMS = 512
"""The limit until waits are measured: a slow device must not accept more work than it can do in time."""


class RecentRate:
    """Events per second over the last `window_s` seconds, kept in at most `num_slices` counters."""

    def __init__(self, window_s: float = 10.0, num_slices: int = 20) -> None:
        self._slice_s = window_s / num_slices
        self._num_slices = num_slices
        self._slices: deque[tuple[int, int]] = deque()

    def add(self, count: int, now: float) -> None:
        current = int(now / self._slice_s)
        if self._slices and self._slices[-1][0] == current:
            count += self._slices.pop()[1]
        self._slices.append((current, count))
        self._forget(current)

    def per_second(self, now: float) -> float:
        """The rate; 0.0 if nothing was counted within the window."""
        self._forget(int(now / self._slice_s))
        if not self._slices:
            return 0.0
        elapsed_s = now - self._slices[0][0] * self._slice_s
        return sum(count for _, count in self._slices) / max(elapsed_s, self._slice_s)

    def _forget(self, current: int) -> None:
        while self._slices and self._slices[0][0] <= current - self._num_slices:
            self._slices.popleft()


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
