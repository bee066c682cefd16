"""The greatest rate a server sustains, by bisection on a logarithmic scale; `campaign` runs the steps."""

import math
from dataclasses import dataclass, field

from fewshard_loadtest.measure import Result

FIRST_GROWTH = 1.6
NEXT_GROWTH = 1.1
"""Of a repeat, which begins where the last one ended."""
DESCENT = 4.0
MAX_TRIES = 2
ANSWERED_SHARE = 0.95
LOWEST_RATE = 0.5


@dataclass
class Bisection:
    """`next_rate` says what to try, `tell` how it went; `sustained` is the greatest rate that was kept.

    A rate fails only where it fails twice: one hiccup of the machine does not decide a step.
    """

    start: float
    precision: float = 0.03
    growth: float = FIRST_GROWTH
    kept: float | None = None
    failed: float | None = None
    tries: dict[float, int] = field(default_factory=dict)

    @property
    def is_done(self) -> bool:
        """Known to the precision, or nothing is sustained at all."""
        if self.kept is None:
            return self.failed is not None and self.failed <= LOWEST_RATE
        return self.failed is not None and self.failed / self.kept <= 1 + self.precision

    @property
    def sustained(self) -> float | None:
        """Requests per second; None where not even the lowest rate was kept."""
        return self.kept

    def next_rate(self) -> float:
        """Of the step that comes next; call it only while the search is not done."""
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
        """How the step went."""
        if is_kept:
            self.tries.pop(rate, None)
            self.kept = max(rate, self.kept or 0.0)
            return
        self.tries[rate] = self.tries.get(rate, 0) + 1
        if self.tries[rate] >= MAX_TRIES:
            self.failed = min(rate, self.failed or math.inf)


def keeps(result: Result, p99_ms: float, max_errors: float) -> bool:
    """Whether a run stayed within the SLO: p99, errors, and no growing queue."""
    if result.p99_ms is None or result.p99_ms > p99_ms or result.error_share > max_errors:
        return False
    sent_per_s = result.num_requests / result.measured_s
    return result.answered_rps >= ANSWERED_SHARE * sent_per_s
