"""Confidence intervals and the paired test of the report, by scipy, which is imported at the first call."""

from collections.abc import Sequence
from statistics import fmean

CONFIDENCE = 0.95


def mean_interval(values: Sequence[float]) -> tuple[float, float | None, float | None]:
    """Mean and 95 % interval of repeats by Student's t.

    One value has no interval: both ends are None. Raises ValueError where there is no value.
    """
    mean = fmean(values)
    if len(values) < 2:
        return mean, None, None
    from scipy.stats import sem, t

    half = float(t.ppf((1 + CONFIDENCE) / 2, len(values) - 1) * sem(values))
    return mean, mean - half, mean + half


def wilson(num_right: int, num: int) -> tuple[float, float]:
    """95 % interval of a share (Wilson 1927), which holds near 0 and 1 and for few items too.

    It is 0 to 1 where there is no item.
    """
    if not num:
        return 0.0, 1.0
    from scipy.stats import binomtest

    ends = binomtest(num_right, num).proportion_ci(CONFIDENCE, method="wilson")
    return float(ends.low), float(ends.high)


def mcnemar(num_only_a: int, num_only_b: int) -> float:
    """The exact two-sided p of McNemar's test (1947).

    It is the probability that two equally good models differ this much, or more, on the items that only one
    of them gets right.
    """
    if not num_only_a + num_only_b:
        return 1.0
    from scipy.stats import binomtest

    return float(binomtest(num_only_a, num_only_a + num_only_b).pvalue)
