"""Bisection for the greatest rate that a server sustains, on a logarithmic scale. `sweep` runs the steps."""

import math
from dataclasses import dataclass, field

from fewshard_loadtest.measure import Result

FIRST_GROWTH = 1.6
NEXT_GROWTH = 1.1
"""Growth in a later repeat, which starts at the rate that the last one found."""
DESCENT = 4.0
MAX_TRIES = 2
ANSWERED_SHARE = 0.95
LOWEST_RATE = 0.5


@dataclass
class Bisection:
    """State of one search. `next_rate` gives the rate to try, `tell` takes the outcome.

    A rate counts as failed only after two failures, so that one disturbance does not decide a step.

    start: first rate to try, requests per second.
    precision: relative precision at which the search ends.
    growth: factor between rates until one fails.
    kept: greatest rate within the SLO so far.
    failed: smallest rate that failed so far.
    tries: number of failures of rates that have not succeeded.
    """

    start: float
    precision: float = 0.03
    growth: float = FIRST_GROWTH
    kept: float | None = None
    failed: float | None = None
    tries: dict[float, int] = field(default_factory=dict)

    @property
    def is_done(self) -> bool:
        """Whether the rate is known to the precision, or no rate is sustained."""
        if self.kept is None:
            return self.failed is not None and self.failed <= LOWEST_RATE
        return self.failed is not None and self.failed / self.kept <= 1 + self.precision

    @property
    def sustained(self) -> float | None:
        """Greatest sustained rate in requests per second; None if even the lowest rate failed."""
        return self.kept

    def next_rate(self) -> float:
        """The rate of the next step. Call it only while the search is not done."""
        if self.kept is None and self.failed is None:
            return self.start
        if self.kept is None:
            assert self.failed is not None
            return max(self._repeat() or self.failed / DESCENT, LOWEST_RATE)
        if self.failed is None:
            return self._repeat() or self.kept * self.growth
        return self._repeat() or math.sqrt(self.kept * self.failed)

    def _repeat(self) -> float | None:
        """A rate that has failed once and must be tried again."""
        return next((rate for rate, count in self.tries.items() if count < MAX_TRIES), None)

    def tell(self, rate: float, is_kept: bool) -> None:
        """Record the outcome of a step."""
        if is_kept:
            self.tries.pop(rate, None)
            self.kept = max(rate, self.kept or 0.0)
            return
        self.tries[rate] = self.tries.get(rate, 0) + 1
        if self.tries[rate] >= MAX_TRIES:
            self.failed = min(rate, self.failed or math.inf)


def keeps(result: Result, p99_ms: float, max_errors: float) -> bool:
    """Whether a run stayed within the SLO: p99, errors, and a queue that does not grow."""
    if result.p99_ms is None or result.p99_ms > p99_ms or result.error_share > max_errors:
        return False
    sent_per_s = result.num_requests / result.measured_s
    return result.answered_rps >= ANSWERED_SHARE * sent_per_s
