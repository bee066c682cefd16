"""What predictions are worth, and how two models' predictions differ; numpy alone, called by `judge`.

How well a number tells texts of another domain from those of the training domain: AUROC, ranks alone.
"""

from dataclasses import dataclass
from math import comb, sqrt

import numpy as np
from numpy.typing import NDArray

Classes = NDArray[np.int64]
PAYS_TOO_MUCH = 2.0
"""A class that loses more than this many times the average loss is warned about."""


def accuracy(predictions: Classes, labels: Classes) -> float:
    """The share of `predictions` [N] that equal `labels` [N]. Raises ValueError for none or unequal many."""
    _require_pairs(predictions, labels)
    return float((predictions == labels).mean())


def macro_f1(predictions: Classes, labels: Classes) -> float:
    """The mean of each class's F1, over the classes that occur among the labels."""
    _require_pairs(predictions, labels)
    scores = []
    for label in np.unique(labels):
        predicted, true = predictions == label, labels == label
        scores.append(2 * (predicted & true).sum() / (predicted.sum() + true.sum()))
    return float(np.mean(scores))


def confusion(predictions: Classes, labels: Classes, num_classes: int) -> Classes:
    """Counts [num_classes, num_classes]: row the true class, column the predicted one."""
    _require_pairs(predictions, labels)
    counts = np.bincount(labels * num_classes + predictions, minlength=num_classes**2)
    return counts.reshape(num_classes, num_classes)


def standard_error(share: float, num_items: int) -> float:
    """Of a share measured on `num_items` independent items (binomial)."""
    return float(np.sqrt(share * (1 - share) / num_items))


def mean_and_error(values: list[float]) -> tuple[float, float | None]:
    """The mean and its standard error; None for the error of a single value."""
    mean = float(np.mean(values))
    if len(values) < 2:
        return mean, None
    return mean, float(np.std(values, ddof=1) / sqrt(len(values)))


@dataclass(frozen=True, slots=True)
class McNemar:
    """`gained`: items that only the second model has right; `lost`: only the first; `p`: two-sided."""

    gained: int
    lost: int
    p: float


def mcnemar(before: Classes, after: Classes, labels: Classes) -> McNemar:
    """McNemar's exact test (1947) whether two models' paired predictions are equally often right."""
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
    # An exact ratio of integers: no float holds 2**-1100, which ten thousand images may ask for.
    return float(min(1.0, 2 * tail / 2**total))


@dataclass(frozen=True, slots=True)
class Flips:
    """Items whose predicted class differs between two models (Hooker et al. 2019): `share` of all, and
    their `rows`."""

    share: float
    rows: Classes


def flips(before: Classes, after: Classes) -> Flips:
    _require_pairs(before, after)
    rows = np.flatnonzero(before != after)
    return Flips(len(rows) / len(before), rows)


@dataclass(frozen=True, slots=True)
class ClassChange:
    """`change` of a class's accuracy, in shares; `pays_too_much`: it loses over twice the average loss."""

    label: int
    before: float
    after: float
    pays_too_much: bool

    @property
    def change(self) -> float:
        return self.after - self.before


def class_changes(before: Classes, after: Classes, labels: Classes) -> list[ClassChange]:
    """Who pays for the sparsity: accuracy by class before and after (Hooker et al. 2020, arXiv:2010.03058).

    The average loss is that over all items. Where nothing is lost on average, a class that loses is warned
    about if it loses more than one standard error of its own accuracy.
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
    """The chance that a text from outside has the larger value than one from inside; 0.5 is no signal.

    `low`, `high`: the 95 % interval by the bootstrap over texts.
    """

    value: float
    low: float
    high: float


def auroc(inside: Values, outside: Values) -> float:
    """Area under the ROC curve by ranks (Mann, Whitney 1947); ties count half."""
    values = np.concatenate([inside, outside])
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = counts.cumsum()
    ranks = (last - (counts - 1) / 2)[inverse]
    above = ranks[len(inside) :].sum() - len(outside) * (len(outside) + 1) / 2
    return float(above / (len(inside) * len(outside)))


def auroc_with_interval(inside: Values, outside: Values, seed: int = 0, num_draws: int = 500) -> Auroc:
    """The same with its interval; `seed` makes it repeatable."""
    rng = np.random.default_rng(seed)
    draws = [
        auroc(rng.choice(inside, len(inside)), rng.choice(outside, len(outside))) for _ in range(num_draws)
    ]
    low, high = np.quantile(draws, (0.025, 0.975))
    return Auroc(auroc(inside, outside), float(low), float(high))
