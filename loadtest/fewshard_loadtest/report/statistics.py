"""Confidence intervals and the paired test of the report; each says where it comes from."""

import math
from collections.abc import Sequence
from statistics import fmean, stdev

import numpy as np
from numpy.typing import NDArray

# Student's t, two-sided 95 %, by degrees of freedom 1 to 10; beyond, the normal's is near enough.
_T95 = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228)
_Z95 = 1.96


def mean_interval(values: Sequence[float]) -> tuple[float, float | None, float | None]:
    """Mean and 95 % interval of repeats by Student's t; no interval of one. Raises ValueError of none."""
    mean = fmean(values)
    if len(values) < 2:
        return mean, None, None
    freedom = len(values) - 1
    t = _T95[freedom - 1] if freedom <= len(_T95) else _Z95
    half = t * stdev(values) / math.sqrt(len(values))
    return mean, mean - half, mean + half


def wilson(num_right: int, num: int) -> tuple[float, float]:
    """95 % interval of a share (Wilson 1927): honest also near 0 and 1, and of few items."""
    if not num:
        return 0.0, 1.0
    share, z2 = num_right / num, _Z95**2
    middle = (share + z2 / (2 * num)) / (1 + z2 / num)
    half = _Z95 * math.sqrt(share * (1 - share) / num + z2 / (4 * num**2)) / (1 + z2 / num)
    return max(middle - half, 0.0), min(middle + half, 1.0)


def mcnemar(num_only_a: int, num_only_b: int) -> float:
    """Exact two-sided p (McNemar 1947) that two equally good models differ so far on the items which only one
    of them gets right."""
    num, few = num_only_a + num_only_b, min(num_only_a, num_only_b)
    if not num:
        return 1.0
    tail = sum(math.exp(_log_choose(num, k) - num * math.log(2)) for k in range(few + 1))
    return min(1.0, 2 * tail)


def _log_choose(n: int, k: int) -> float:
    return math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1)


def nearest_rank(ordered: Sequence[float] | NDArray[np.float64], share: float) -> float | None:
    """The smallest value that at least `share` of the ascending values do not exceed; None of none."""
    if not len(ordered):
        return None
    return float(ordered[max(math.ceil(round(share * len(ordered), 9)), 1) - 1])
