"""Chooses the thresholds of a cascade from its stages' predictions for held-out items.

`fewshard calibrate` calls it. It is pure arithmetic on arrays of N items and S stages in order.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np
from numpy.typing import NDArray

MAX_CANDIDATES = {1: 1000, 2: 40, 3: 12}
"""The most thresholds to try per stage except the last, by the number of such stages."""
NUM_FOLDS = 5


@dataclass(frozen=True)
class Outcomes:
    """The predictions of every stage for every item, and the cost of an item in each stage.

    confidence: [S, N], from 0 to 1.
    is_right: [S, N], whether the predicted label is correct.
    costs: [S], in any unit.
    """

    confidence: NDArray[np.float64]
    is_right: NDArray[np.bool_]
    costs: NDArray[np.float64]

    @property
    def num_items(self) -> int:
        return int(self.confidence.shape[1])

    def of(self, items: NDArray[np.intp]) -> "Outcomes":
        """The outcomes of these items only."""
        return Outcomes(self.confidence[:, items], self.is_right[:, items], self.costs)


@dataclass(frozen=True, slots=True)
class Point:
    """The results of a cascade with certain thresholds.

    accept_above: the threshold of each stage except the last.
    cost: the mean cost of an item.
    shares: the share of items that each stage answers.
    """

    accept_above: tuple[float, ...]
    accuracy: float
    cost: float
    shares: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Choice:
    """The cheapest cascade that reaches the wanted accuracy.

    point: its thresholds and results on all items.
    wished: the wanted accuracy.
    held_out: mean accuracy and cost in cross-validation, on items not used to choose the thresholds.
    """

    point: Point
    wished: float
    held_out: tuple[float, float]


def evaluate(outcomes: Outcomes, accept_above: Sequence[float]) -> Point:
    """The results of a cascade with these thresholds, one for each stage except the last."""
    thresholds = np.append(np.asarray(accept_above, dtype=np.float64), -np.inf)
    accepts = outcomes.confidence >= thresholds[:, None]
    stage_of = accepts.argmax(axis=0)
    is_right = outcomes.is_right[stage_of, np.arange(outcomes.num_items)]
    costs = outcomes.costs.cumsum()[stage_of]
    shares = np.bincount(stage_of, minlength=len(thresholds)) / outcomes.num_items
    return Point(tuple(accept_above), float(is_right.mean()), float(costs.mean()), tuple(shares.tolist()))


def curve(outcomes: Outcomes) -> list[Point]:
    """The Pareto front of cost and accuracy, from the cheapest cascade to the most accurate."""
    best: list[Point] = []
    for point in sorted(_all_points(outcomes), key=lambda point: (point.cost, -point.accuracy)):
        if not best or point.accuracy > best[-1].accuracy:
            best.append(point)
    return best


def choose(outcomes: Outcomes, accuracy: float | None = None, within: float = 0.0) -> Choice | None:
    """The cheapest cascade with at least `accuracy`; None if no cascade reaches it.

    If `accuracy` is None, the wanted accuracy is that of the last stage minus `within`.
    """
    wished = _wished(outcomes, accuracy, within)
    point = _cheapest(outcomes, wished)
    return None if point is None else Choice(point, wished, _held_out(outcomes, accuracy, within))


def standard_error(accuracy: float, num_items: int) -> float:
    """The standard error of an accuracy that was measured on `num_items` items."""
    return float(np.sqrt(accuracy * (1 - accuracy) / num_items))


def _wished(outcomes: Outcomes, accuracy: float | None, within: float) -> float:
    return accuracy if accuracy is not None else float(outcomes.is_right[-1].mean()) - within


def _cheapest(outcomes: Outcomes, wished: float) -> Point | None:
    # Shares are not exact in floating point; allow a rounding error far below one item.
    good = (point for point in curve(outcomes) if point.accuracy >= wished - 1e-9)
    return next(good, None)


def _held_out(outcomes: Outcomes, accuracy: float | None, within: float) -> tuple[float, float]:
    """Cross-validated accuracy and cost: thresholds are chosen on 4/5 of the items and used on the rest."""
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
    """Thresholds between neighbouring confidences, plus 0 (accept all) and 1 (accept only certainty)."""
    seen = np.unique(confidence)
    between = (seen[:-1] + seen[1:]) / 2
    if len(between) > most:
        between = between[np.linspace(0, len(between) - 1, most).round().astype(np.intp)]
    return [0.0, *between.tolist(), 1.0]
