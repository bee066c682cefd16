"""Metrics of predictions, comparisons of two models, and the AUROC of out-of-domain signals. NumPy only.

`accuracy`, `assessment`, `significance` and `table` call it; `benchmarks/ood_signal.py` uses the AUROC.
"""

from dataclasses import dataclass
from math import comb, sqrt

import numpy as np
from numpy.typing import NDArray

Classes = NDArray[np.int64]
PAYS_TOO_MUCH = 2.0
"""A warning is given for a class that loses more than this multiple of the average loss."""


def accuracy(predictions: Classes, labels: Classes) -> float:
    """Return the share of `predictions` [N] equal to `labels` [N]. Raises ValueError if empty or unequal."""
    _require_pairs(predictions, labels)
    return float((predictions == labels).mean())


def macro_f1(predictions: Classes, labels: Classes) -> float:
    """Return the mean F1 over the classes that occur in the labels."""
    _require_pairs(predictions, labels)
    scores = []
    for label in np.unique(labels):
        predicted, true = predictions == label, labels == label
        scores.append(2 * (predicted & true).sum() / (predicted.sum() + true.sum()))
    return float(np.mean(scores))


def confusion(predictions: Classes, labels: Classes, num_classes: int) -> Classes:
    """Return counts [num_classes, num_classes]: true class by row, predicted class by column."""
    _require_pairs(predictions, labels)
    counts = np.bincount(labels * num_classes + predictions, minlength=num_classes**2)
    return counts.reshape(num_classes, num_classes)


def standard_error(share: float, num_items: int) -> float:
    """Return the binomial standard error of a share over `num_items` independent items."""
    return float(np.sqrt(share * (1 - share) / num_items))


def mean_and_error(values: list[float]) -> tuple[float, float | None]:
    """Return the mean and its standard error; the error of a single value is None."""
    mean = float(np.mean(values))
    if len(values) < 2:
        return mean, None
    return mean, float(np.std(values, ddof=1) / sqrt(len(values)))


@dataclass(frozen=True, slots=True)
class McNemar:
    """McNemar's exact test of two models.

    gained: items that only the second model has right.
    lost: items that only the first model has right.
    p: two-sided.
    """

    gained: int
    lost: int
    p: float


def mcnemar(before: Classes, after: Classes, labels: Classes) -> McNemar:
    """Test whether two models' paired predictions are equally often right (McNemar 1947, exact)."""
    _require_pairs(before, labels)
    _require_pairs(after, labels)
    gained = int(((after == labels) & (before != labels)).sum())
    lost = int(((after != labels) & (before == labels)).sum())
    return McNemar(gained, lost, sign_test(gained, lost))


def sign_test(gained: int, lost: int) -> float:
    """The two-sided p of `gained` against `lost` where each is as likely (binomial, one half).

    scipy's `binomtest` gives the same number. The sum is written out here because evaluation runs with numpy
    alone, and scipy would add 35 MB to what an installation loads.
    """
    total, fewer = gained + lost, min(gained, lost)
    tail = sum(comb(total, count) for count in range(fewer + 1))
    # A ratio of exact integers: a float cannot hold 2**-1100, which ten thousand images may need.
    return float(min(1.0, 2 * tail / 2**total))


@dataclass(frozen=True, slots=True)
class Flips:
    """Items whose predicted class differs between two models (Hooker et al. 2019).

    share: of all items.
    rows: their indices.
    """

    share: float
    rows: Classes


def flips(before: Classes, after: Classes) -> Flips:
    _require_pairs(before, after)
    rows = np.flatnonzero(before != after)
    return Flips(len(rows) / len(before), rows)


@dataclass(frozen=True, slots=True)
class ClassChange:
    """Accuracy of one class in two models.

    change: difference of the shares.
    pays_too_much: the class loses more than twice the average loss.
    """

    label: int
    before: float
    after: float
    pays_too_much: bool

    @property
    def change(self) -> float:
        return self.after - self.before


def class_changes(before: Classes, after: Classes, labels: Classes) -> list[ClassChange]:
    """Return accuracy by class before and after (Hooker et al. 2020, arXiv:2010.03058).

    The average loss is over all items. If nothing is lost on average, a class is marked if it loses more than
    one standard error of its own accuracy.
    """
    average_loss = accuracy(before, labels) - accuracy(after, labels)
    changes = []
    for label in np.unique(labels):
        rows = labels == label
        old, new = accuracy(before[rows], labels[rows]), accuracy(after[rows], labels[rows])
        limit = PAYS_TOO_MUCH * average_loss if average_loss > 0 else standard_error(old, int(rows.sum()))
        changes.append(ClassChange(int(label), old, new, old - new > limit))
    return changes


def _require_pairs(first: Classes, second: Classes) -> None:
    if first.shape != second.shape or first.ndim != 1 or not len(first):
        raise ValueError(f"expected as many predictions as labels, got {first.shape} and {second.shape}")


Values = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Auroc:
    """The probability that an outside text has the larger value than an inside one; 0.5 is no signal.

    low, high: 95 % interval by bootstrap over texts.
    """

    value: float
    low: float
    high: float


def auroc(inside: Values, outside: Values) -> float:
    """Return the area under the ROC curve by ranks (Mann, Whitney 1947). Ties count half."""
    values = np.concatenate([inside, outside])
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = counts.cumsum()
    ranks = (last - (counts - 1) / 2)[inverse]
    above = ranks[len(inside) :].sum() - len(outside) * (len(outside) + 1) / 2
    return float(above / (len(inside) * len(outside)))


def auroc_with_interval(inside: Values, outside: Values, seed: int = 0, num_draws: int = 500) -> Auroc:
    """Return the AUROC with its interval. `seed` makes it repeatable."""
    rng = np.random.default_rng(seed)
    draws = [
        auroc(rng.choice(inside, len(inside)), rng.choice(outside, len(outside))) for _ in range(num_draws)
    ]
    low, high = np.quantile(draws, (0.025, 0.975))
    return Auroc(auroc(inside, outside), float(low), float(high))
