"""How well a number tells texts of another domain from those of the training domain: AUROC, ranks alone."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

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
