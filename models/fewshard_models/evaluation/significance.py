"""Compares two models seed by seed: flips, McNemar's test, change by class; called by `table`."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from fewshard_models.evaluation import metrics
from fewshard_models.evaluation.metrics import ClassChange, McNemar
from fewshard_models.evaluation.result import Predicted, Result


@dataclass(frozen=True, slots=True)
class Pair:
    """One seed of a model against the other model.

    other_seed: differs from `seed` only if the other model has no such seed.
    """

    seed: int
    other_seed: int
    flipped: float
    mcnemar: McNemar


@dataclass(frozen=True, slots=True)
class Pairs:
    """All seeds of a model against another.

    classes: change by class over all seeds together.
    change: change of the accuracy over all items.
    """

    other: str
    pairs: tuple[Pair, ...]
    change: float
    classes: tuple[ClassChange, ...]
    names: tuple[str, ...]

    @property
    def flipped(self) -> float:
        return float(np.mean([pair.flipped for pair in self.pairs]))

    @property
    def warnings(self) -> list[str]:
        """Classes that lose more than twice the average, as text."""
        return [
            f"{self.names[each.label]} {100 * each.change:+.1f}"
            for each in self.classes
            if each.pays_too_much
        ]


def pair_up(own: Sequence[Result], others: Sequence[Result]) -> Pairs | None:
    """Pair each seed of `own` with the same seed of `others`, or with their lowest if they lack it.

    None if a side has no predictions or the data differ.
    """
    pairs, before, after, labels = [], [], [], []
    names: tuple[str, ...] = ()
    for result in own:
        other = _partner(result, others)
        if other is None or result.held_out is None or other.held_out is None:
            continue
        mine, theirs = result.held_out, other.held_out
        if not _same_data(mine, theirs):
            continue
        flipped = metrics.flips(theirs.predictions, mine.predictions).share
        test = metrics.mcnemar(theirs.predictions, mine.predictions, mine.labels)
        pairs.append(Pair(result.seed, other.seed, flipped, test))
        before.append(theirs.predictions)
        after.append(mine.predictions)
        labels.append(mine.labels)
        names = mine.names
    if not pairs:
        return None
    every = (np.concatenate(before), np.concatenate(after), np.concatenate(labels))
    change = metrics.accuracy(every[1], every[2]) - metrics.accuracy(every[0], every[2])
    return Pairs(others[0].model, tuple(pairs), change, tuple(metrics.class_changes(*every)), names)


def _partner(result: Result, others: Sequence[Result]) -> Result | None:
    same = [other for other in others if other.seed == result.seed]
    return next(iter([*same, *sorted(others, key=lambda other: other.seed)]), None)


def _same_data(first: Predicted, second: Predicted) -> bool:
    return first.dataset == second.dataset and np.array_equal(first.labels, second.labels)
