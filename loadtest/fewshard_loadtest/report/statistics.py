"""Confidence intervals and the paired test of the report. scipy is imported on the first call."""

from collections.abc import Sequence
from statistics import fmean

CONFIDENCE = 0.95


def mean_interval(values: Sequence[float]) -> tuple[float, float | None, float | None]:
    """Mean and 95 % interval of repeats by Student's t.

    A single value has no interval: both ends are None. Raises ValueError without values.
    """
    mean = fmean(values)
    if len(values) < 2:
        return mean, None, None
    from scipy.stats import sem, t

    half = float(t.ppf((1 + CONFIDENCE) / 2, len(values) - 1) * sem(values))
    return mean, mean - half, mean + half


def wilson(num_right: int, num: int) -> tuple[float, float]:
    """95 % interval of a share (Wilson 1927), valid near 0 and 1 and for few items; (0, 1) without items."""
    if not num:
        return 0.0, 1.0
    from scipy.stats import binomtest

    ends = binomtest(num_right, num).proportion_ci(CONFIDENCE, method="wilson")
    return float(ends.low), float(ends.high)


def mcnemar(num_only_a: int, num_only_b: int) -> float:
    """Exact two-sided p of McNemar's test (1947).

    The probability that two equally good models differ at least this much on the items that only one of
    them gets right.
    """
    if not num_only_a + num_only_b:
        return 1.0
    from scipy.stats import binomtest

    return float(binomtest(num_only_a, num_only_a + num_only_b).pvalue)
