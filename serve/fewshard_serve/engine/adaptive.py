"""How much may be in flight so that nothing waits longer than it should, learned from how long things waited.

A gradient limit, as congestion control has it for networks (Jacobson: "Congestion avoidance and control",
SIGCOMM 1988) and Netflix's `concurrency-limits` for servers. What is in flight over what is served in a
second is how long it waits (Little's law), so the limit is scaled by the wait that is wanted over the wait
that was seen.
"""

from collections.abc import Callable

MIN_WINDOW_S = 0.1
MAX_GROWTH = 2.0
MAX_CUT = 8.0
"""By how much one step changes the limit at the most: one odd wait must not close the doors for long."""


class AdaptiveShare:
    """The share of the configured limits that may be used now, from `floor` to 1.

    It falls as soon as a request has waited too long. It grows when requests were refused and, for as long as
    the longest wait lasts, none has waited too long; but not beyond `served`, the share that is served in the
    wanted wait. That counts what no wait does, such as the time until a request is read, and what has been
    let in by the last step but has not waited yet.
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
        """The limit kept a request out."""
        self._has_refused = True

    def observe(self, wait_s: float, load: float) -> None:
        """One request left the queue after `wait_s`. `load`: the share in use once it had been admitted."""
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
