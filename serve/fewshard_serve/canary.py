"""Judges a new version of a model by the requests that both versions have answered.

`rayserve.canary_traffic` feeds it. Every test here is sequential: it may be looked at after each request, and
the chance that a version as good as the old one is ever given up stays below the stated risk.

A test bets on a bound of a mean: its wealth is multiplied by `1 + bet * (value - bound)` for each request,
which on average does not grow as long as the mean keeps to the bound. So the wealth ever exceeds 1 / risk
with a chance of at most the risk (Ville's inequality). Several bets are averaged, since the true mean is not
known.
Waudby-Smith and Ramdas, Estimating means of bounded random variables by betting, 2024,
https://arxiv.org/abs/2010.09686
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

import numpy as np
from annotated_types import Gt, Lt
from numpy.typing import NDArray
from pydantic import BeforeValidator

from fewshard_core.yaml_reader import Section
from fewshard_serve.settings import FINITE, Positive, PositiveInt, Share, WithExponent

Risk = Annotated[float, FINITE, Gt(0), Lt(1), WithExponent()]

HARM_BETS = (0.03, 0.06, 0.12, 0.25, 0.5)
"""Parts of the wealth that are put on a harmful answer."""
RATE_MULTIPLES = (1.25, 1.5, 2.0, 4.0, 8.0, 16.0)
"""The rates, as multiples of the bound, for which a bet on a rate is best."""
SLOW_SHARE = 0.01
NUM_TIMED = 2000
"""Answers of the old version from which its 99th percentile is bounded, before the new one's are judged."""


def as_text(version: object) -> object:
    """Return a version's name; YAML reads `1` as a number."""
    return str(version) if isinstance(version, int) and not isinstance(version, bool) else version


class JudgeConfig(Section):
    """What a new version must not do."""

    max_flips: Share = 0.01
    max_p99_ratio: Positive | None = None
    labels_from: str = ""
    risk: Risk = 0.05


class CanaryConfig(Section):
    """A new version that takes over by steps, or is given up by itself."""

    to: Annotated[str, BeforeValidator(as_text)]
    judge: JudgeConfig = JudgeConfig()
    share: Share = 1.0
    step_requests: PositiveInt = 4000


@dataclass(frozen=True, slots=True)
class Pair:
    """One request as both versions have answered it.

    flips: share of its items that the two answer differently.
    harm: share of its items that the old version has right and the new one wrong, less the opposite; None if
        the truth is not known.
    old_s, new_s: seconds in the model.
    """

    flips: float
    old_s: float
    new_s: float
    harm: float | None = None


class Bets:
    """The wealth of bets that the mean of values in [low, 1] exceeds a bound.

    sizes: how much each bet stakes on a value one above the bound; at most 1 / (bound - low).
    """

    def __init__(self, bound: float, sizes: Sequence[float]) -> None:
        self._bound = bound
        self._sizes = np.array(sizes)
        self._logs: NDArray[np.float64] = np.zeros(len(sizes))

    def add(self, value: float) -> None:
        """Count the value of one request."""
        self._logs += np.log1p(self._sizes * (value - self._bound))

    @property
    def log_wealth(self) -> float:
        """The logarithm of the mean wealth of the bets."""
        top = self._logs.max()
        return float(top + np.log(np.exp(self._logs - top).mean()))


def rate_bets(bound: float) -> Bets:
    """Return bets that a rate exceeds `bound`. Each is the likelihood ratio of a multiple of it, capped."""
    bound = max(bound, 1e-6)
    rates = [min(bound * multiple, (1 + bound) / 2) for multiple in RATE_MULTIPLES]
    return Bets(bound, [(rate - bound) / (bound * (1 - bound)) if bound < 1 else 0.0 for rate in rates])


class Judge:
    """Decides, after each pair, whether the new version is given up."""

    def __init__(self, settings: JudgeConfig) -> None:
        self.num_pairs = 0
        self.num_labelled = 0
        self._settings = settings
        num_tests = 1 + bool(settings.labels_from) + (settings.max_p99_ratio is not None)
        self._risk = settings.risk / num_tests
        self._flips = rate_bets(settings.max_flips)
        self._harm = Bets(0.0, HARM_BETS)
        self._slow = rate_bets(SLOW_SHARE)
        self._old_s: list[float] = []
        self._slow_s = 0.0

    def add(self, pair: Pair) -> str:
        """Count a pair. Return why the new version is given up; "" if it is not."""
        self.num_pairs += 1
        self._flips.add(pair.flips)
        if pair.harm is not None:
            self.num_labelled += 1
            self._harm.add(pair.harm)
        if self._settings.max_p99_ratio is not None:
            self._time(pair, self._settings.max_p99_ratio)
        return self.verdict

    @property
    def verdict(self) -> str:
        """Why the new version is given up; "" if it is not."""
        settings = self._settings
        limit = -np.log(self._risk)
        if self._flips.log_wealth >= limit:
            return f"it answers more than {settings.max_flips:.2%} of the items differently"
        if settings.labels_from and self._harm.log_wealth >= limit:
            return f"it is less accurate, by {self.num_labelled} requests with labels"
        # Half of this test's risk is that the old version's percentile is bounded too low.
        if settings.max_p99_ratio is not None and self._slow.log_wealth >= limit + np.log(2):
            return f"the 99th percentile of its time is over {settings.max_p99_ratio:g} times the old one's"
        return ""

    def _time(self, pair: Pair, max_ratio: float) -> None:
        if len(self._old_s) < NUM_TIMED:
            self._old_s.append(pair.old_s)
            if len(self._old_s) == NUM_TIMED:
                self._slow_s = max_ratio * upper_p99(self._old_s, self._risk / 2)
        else:
            self._slow.add(float(pair.new_s > self._slow_s))


def upper_p99(seconds: Sequence[float], risk: float) -> float:
    """Return a time that is above the 99th percentile with a chance of at least 1 - `risk`.

    With fewer than ln(risk) / ln(0.99) times it is infinite. By the binomial law of order statistics.
    """
    num, above = len(seconds), 0
    chance = (1 - SLOW_SHARE) ** num  # that none of them is above the percentile
    if chance > risk:
        return float("inf")
    while True:  # one more of them may be above it
        above += 1
        more = _binomial(num, above)
        if chance + more > risk:
            return sorted(seconds)[num - above]
        chance += more


def _binomial(num: int, hits: int) -> float:
    from math import comb

    return comb(num, hits) * SLOW_SHARE**hits * (1 - SLOW_SHARE) ** (num - hits)
