"""The share of a model's limits that may be used now, by the waits that were measured; `admission` keeps one.

The limit adapts to measured waits. It is a gradient limit, as in network congestion control (Jacobson:
"Congestion avoidance and control", SIGCOMM 1988) and in Netflix's `concurrency-limits`. By Little's law, the
wait is the number in flight divided by the rate served, so the limit is scaled by the target wait divided by
the measured wait.
"""

from collections import deque
from collections.abc import Callable

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
