"""Chooses the thresholds of a cascade from what its stages said of held-out items; `fewshard calibrate` calls
it.

Pure arithmetic on arrays: N items, S stages in order, C labels.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np
from numpy.typing import NDArray

MAX_CANDIDATES = {1: 1000, 2: 40, 3: 12}
"""Thresholds that are tried for each stage but the last, by how many such stages there are."""
NUM_FOLDS = 5


@dataclass(frozen=True)
class Outcomes:
    """What every stage said of every item, and what one item costs there.

    `confidence` [S, N] from 0 to 1; `is_right` [S, N]; `costs` [S] in any unit.
    """

    confidence: NDArray[np.float64]
    is_right: NDArray[np.bool_]
    costs: NDArray[np.float64]

    @property
    def num_items(self) -> int:
        return int(self.confidence.shape[1])

    def of(self, items: NDArray[np.intp]) -> "Outcomes":
        """The same of these items alone."""
        return Outcomes(self.confidence[:, items], self.is_right[:, items], self.costs)


@dataclass(frozen=True, slots=True)
class Point:
    """A cascade with these thresholds: accuracy, mean cost of an item, share of items each stage answers."""

    accept_above: tuple[float, ...]
    accuracy: float
    cost: float
    shares: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Choice:
    """The cheapest cascade that is as accurate as wished, and what it does on items it was not chosen on.

    `held_out` are its mean accuracy and cost over folds that took no part in each choice.
    """

    point: Point
    wished: float
    held_out: tuple[float, float]


def evaluate(outcomes: Outcomes, accept_above: Sequence[float]) -> Point:
    """What a cascade with these thresholds, one for each stage but the last, does."""
    thresholds = np.append(np.asarray(accept_above, dtype=np.float64), -np.inf)
    accepts = outcomes.confidence >= thresholds[:, None]
    stage_of = accepts.argmax(axis=0)
    is_right = outcomes.is_right[stage_of, np.arange(outcomes.num_items)]
    costs = outcomes.costs.cumsum()[stage_of]
    shares = np.bincount(stage_of, minlength=len(thresholds)) / outcomes.num_items
    return Point(tuple(accept_above), float(is_right.mean()), float(costs.mean()), tuple(shares.tolist()))


def curve(outcomes: Outcomes) -> list[Point]:
    """Every cascade that no other beats in cost and accuracy both, from the cheapest to the most accurate."""
    best: list[Point] = []
    for point in sorted(_all_points(outcomes), key=lambda point: (point.cost, -point.accuracy)):
        if not best or point.accuracy > best[-1].accuracy:
            best.append(point)
    return best


def choose(outcomes: Outcomes, accuracy: float | None = None, within: float = 0.0) -> Choice | None:
    """The cheapest cascade with at least `accuracy`, or with the last stage's less `within` where that is
    None.

    None where no cascade reaches it.
    """
    wished = _wished(outcomes, accuracy, within)
    point = _cheapest(outcomes, wished)
    return None if point is None else Choice(point, wished, _held_out(outcomes, accuracy, within))


def standard_error(accuracy: float, num_items: int) -> float:
    """Of an accuracy that was seen on so many items."""
    return float(np.sqrt(accuracy * (1 - accuracy) / num_items))


def _wished(outcomes: Outcomes, accuracy: float | None, within: float) -> float:
    return accuracy if accuracy is not None else float(outcomes.is_right[-1].mean()) - within


def _cheapest(outcomes: Outcomes, wished: float) -> Point | None:
    # A share of N items is not exact in floating point; a millionth of an item decides nothing.
    good = (point for point in curve(outcomes) if point.accuracy >= wished - 1e-9)
    return next(good, None)


def _held_out(outcomes: Outcomes, accuracy: float | None, within: float) -> tuple[float, float]:
    """Accuracy and cost where thresholds are chosen on four fifths of the items and used on the fifth."""
    folds = np.array_split(np.random.default_rng(0).permutation(outcomes.num_items), NUM_FOLDS)
    points = []
    for n, fold in enumerate(folds):
        if len(fold) == 0:
            continue
        rest = np.concatenate([each for m, each in enumerate(folds) if m != n])
        known = outcomes.of(rest) if len(rest) else outcomes
        point = _cheapest(known, _wished(known, accuracy, within))
        never = tuple([np.inf] * (len(outcomes.costs) - 1))
        seen = evaluate(outcomes.of(fold), never if point is None else point.accept_above)
        points.append((seen.accuracy, seen.cost, len(fold)))
    accuracies, costs, sizes = zip(*points, strict=True)
    return float(np.average(accuracies, weights=sizes)), float(np.average(costs, weights=sizes))


def _all_points(outcomes: Outcomes) -> list[Point]:
    num_thresholds = len(outcomes.costs) - 1
    candidates = [_candidates(row, MAX_CANDIDATES[num_thresholds]) for row in outcomes.confidence[:-1]]
    return [evaluate(outcomes, thresholds) for thresholds in product(*candidates)]


def _candidates(confidence: NDArray[np.float64], most: int) -> list[float]:
    """Thresholds between neighbouring confidences, with 0 (accept all) and 1 (only what is certain)."""
    seen = np.unique(confidence)
    between = (seen[:-1] + seen[1:]) / 2
    if len(between) > most:
        between = between[np.linspace(0, len(between) - 1, most).round().astype(np.intp)]
    return [0.0, *between.tolist(), 1.0]
