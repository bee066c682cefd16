"""Room for requests, counted in items and estimated tokens; the engine asks before it tokenises."""

import time
from collections import deque
from collections.abc import Callable
from types import TracebackType

from fewshard_serve.errors import Overloaded, TooLarge

MIN_RETRY_AFTER_S = 0.1
MAX_RETRY_AFTER_S = 30.0
UNMEASURED_RETRY_AFTER_S = 1.0


class RecentRate:
    """Items per second over the last `window_s`, kept in `num_slices` counters however many items pass."""

    def __init__(self, window_s: float = 10.0, num_slices: int = 20) -> None:
        self._slice_s = window_s / num_slices
        self._num_slices = num_slices
        self._slices: deque[tuple[int, int]] = deque()

    def add(self, num_items: int, now: float) -> None:
        current = int(now / self._slice_s)
        if self._slices and self._slices[-1][0] == current:
            num_items += self._slices.pop()[1]
        self._slices.append((current, num_items))
        self._forget(current)

    def per_second(self, now: float) -> float:
        """0.0 where nothing was counted within the window."""
        self._forget(int(now / self._slice_s))
        if not self._slices:
            return 0.0
        elapsed_s = now - self._slices[0][0] * self._slice_s
        return sum(count for _, count in self._slices) / max(elapsed_s, self._slice_s)

    def _forget(self, current: int) -> None:
        while self._slices and self._slices[0][0] <= current - self._num_slices:
            self._slices.popleft()


class Ticket:
    """Room taken by one request. Use it as a context manager; leaving without an error counts as served."""

    def __init__(self, admission: "Admission", num_items: int, num_tokens: int) -> None:
        self._admission = admission
        self._num_items = num_items
        self._num_tokens = num_tokens
        self._is_released = False

    def release(self, served: bool = True) -> None:
        """Give the room back; a second call does nothing."""
        if not self._is_released:
            self._is_released = True
            self._admission._release(self._num_items, self._num_tokens, served)

    def __enter__(self) -> "Ticket":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release(served=kind is None)


class Admission:
    """One model's room. Used from the event loop's thread alone, so it needs no lock."""

    def __init__(
        self, model: str, max_items: int, max_tokens: int, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.max_items = max_items
        self.max_tokens = max_tokens
        self.num_items = 0
        self.num_tokens = 0
        self._model = model
        self._clock = clock
        self._served = RecentRate()

    def admit(self, num_items: int, num_tokens: int) -> Ticket:
        """Take room, or raise `TooLarge` (could never fit) or `Overloaded` (come back later)."""
        self._check_size("items", num_items, self.max_items)
        self._check_size("tokens", num_tokens, self.max_tokens)
        if not self._has_room(num_items, num_tokens):
            raise self._overloaded()
        self.num_items += num_items
        self.num_tokens += num_tokens
        return Ticket(self, num_items, num_tokens)

    def _release(self, num_items: int, num_tokens: int, served: bool) -> None:
        self.num_items -= num_items
        self.num_tokens -= num_tokens
        assert self.num_items >= 0, "more items released than admitted. This is a bug."
        if served:
            self._served.add(num_items, self._clock())

    def _has_room(self, num_items: int, num_tokens: int) -> bool:
        fits_items = self.num_items + num_items <= self.max_items
        return fits_items and self.num_tokens + num_tokens <= self.max_tokens

    def _check_size(self, unit: str, asked: int, limit: int) -> None:
        if asked > limit:
            raise TooLarge(
                f"the request holds {asked} {unit} and {self._model!r} admits at most {limit} at a time; "
                f"split the request"
            )

    def _overloaded(self) -> Overloaded:
        wait_s = self.retry_after_s()
        return Overloaded(
            f"{self._model!r} has {self.num_items} of {self.max_items} items and {self.num_tokens} of "
            f"{self.max_tokens} tokens in flight; retry in {wait_s:.1f} s",
            wait_s,
        )

    def retry_after_s(self) -> float:
        """The time in which what is in flight will be served at the recent rate, clamped."""
        rate = self._served.per_second(self._clock())
        if rate == 0.0:
            return UNMEASURED_RETRY_AFTER_S
        return min(max(self.num_items / rate, MIN_RETRY_AFTER_S), MAX_RETRY_AFTER_S)
