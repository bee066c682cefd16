"""How many weights each layer keeps and how many units each group; pure functions over plain numbers."""

from collections.abc import Callable, Mapping, Sequence
from itertools import accumulate
from math import log, prod

from fewshard_models.errors import RecipeError


def check_share(name: str, value: float) -> None:
    """Raise RecipeError unless `value` lies between 0 and 1, both excluded."""
    if not 0 < value < 1:
        raise RecipeError(f"{name} is {value}; it must lie between 0 and 1, both excluded")


def uniform(shapes: Mapping[str, Sequence[int]], density: float) -> dict[str, float]:
    """The same density for every layer. Raises RecipeError for a density outside (0, 1)."""
    check_share("density", density)
    return dict.fromkeys(shapes, density)


def erdos_renyi_kernel(shapes: Mapping[str, Sequence[int]], density: float) -> dict[str, float]:
    """The density of each layer under ERK (Evci et al. 2020, arXiv:1911.11134, section 3).

    A layer of shape (out, in[, kh, kw]) keeps weights in proportion to out + in + kh + kw, and at most all of
    its weights. The layers together keep `density` of all weights. Raises RecipeError for a density outside
    (0, 1).
    """
    check_share("density", density)
    sizes = {name: prod(shape) for name, shape in shapes.items()}
    kept = _fill(density * sum(sizes.values()), sizes, {name: sum(shape) for name, shape in shapes.items()})
    return {name: kept[name] / sizes[name] for name in shapes}


def share_out(total: int, capacity: Mapping[str, int], weight: Mapping[str, float]) -> dict[str, int]:
    """Divide `total` among layers in proportion to `weight`, at most `capacity` each; the sum is exact.

    A larger total is reduced to the sum of the capacities. Raises RecipeError if a layer would get nothing.
    """
    total = min(total, sum(capacity.values()))
    exact = _fill(total, capacity, weight)
    counts = {name: int(value) for name, value in exact.items()}
    left = total - sum(counts.values())
    by_remainder = sorted(exact, key=lambda name: counts[name] - exact[name])
    for name in [name for name in by_remainder if counts[name] < capacity[name]][:left]:
        counts[name] += 1
    if empty := [name for name, count in counts.items() if not count]:
        raise RecipeError(f"{', '.join(empty)} would be left without a weight; choose a higher density")
    return counts


def _fill(total: float, capacity: Mapping[str, int], weight: Mapping[str, float]) -> dict[str, float]:
    """Exact shares in proportion to `weight`; what exceeds a layer's capacity goes to layers with room."""
    filled: dict[str, float] = {}
    while True:
        waiting = [name for name in capacity if name not in filled]
        left = total - sum(filled.values())
        scale = left / sum(weight[name] for name in waiting) if waiting else 0.0
        over = [name for name in waiting if scale * weight[name] >= capacity[name]]
        if not over:
            return {name: filled.get(name, scale * weight[name]) for name in capacity}
        filled.update({name: float(capacity[name]) for name in over})


def choose_widths(
    salience: Mapping[str, Sequence[float]],
    candidates: Mapping[str, Sequence[int]],
    cost_of: Callable[[Mapping[str, int]], float],
    target: float,
    relative: bool = False,
) -> dict[str, int]:
    """The number of units that each group keeps so that `cost_of` the widths is at most `target`.

    salience: the value of each unit of a group, in any order.
    candidates: the widths a group may have, besides its present one (all of `salience`).
    relative: what counts as lost when a group shrinks. False: the sum of salience, which needs one scale for
        all groups. True: the logarithm of the group's remaining share, which needs no common scale and keeps
        any group from being emptied.

    Greedy: each step takes the reduction that loses least per cost saved. A step may skip candidates, since
    measured times do not fall at each one. With MACs as the cost, `target` is a budget of MACs; with measured
    times this is the idea of ZipLM (Frantar & Alistarh 2023, arXiv:2302.04089).
    Raises RecipeError if the smallest widths cost more than `target`.
    """
    worth = {name: _worth(values, relative) for name, values in salience.items()}
    widths = {name: len(values) for name, values in salience.items()}
    cost = cost_of(widths)
    while cost > target:
        steps = []
        for name, width in widths.items():
            for lower in [candidate for candidate in candidates[name] if candidate < width]:
                saved = cost - cost_of({**widths, name: lower})
                if saved > 0:
                    steps.append(((worth[name][width] - worth[name][lower]) / saved, -lower, name))
        if not steps:
            raise RecipeError(
                f"no widths reach {target:.4g}: the narrowest considered cost {cost:.4g}; "
                "ask for a larger share, or round widths to less"
            )
        _, negative, chosen = min(steps)
        widths[chosen] = -negative
        cost = cost_of(widths)
    return _give_back(widths, worth, candidates, cost_of, target)


def _give_back(
    widths: dict[str, int],
    worth: Mapping[str, Sequence[float]],
    candidates: Mapping[str, Sequence[int]],
    cost_of: Callable[[Mapping[str, int]], float],
    target: float,
) -> dict[str, int]:
    """Widen groups again while the target allows it, since the last reduction may have saved too much."""
    while True:
        steps = []
        for name, width in widths.items():
            most = len(worth[name]) - 1
            wider = min((c for c in (*candidates[name], most) if width < c <= most), default=None)
            if wider is not None and cost_of({**widths, name: wider}) <= target:
                steps.append((worth[name][wider] - worth[name][width], name, wider))
        if not steps:
            return widths
        _, chosen, wider = max(steps)
        widths[chosen] = wider


def _worth(salience: Sequence[float], relative: bool) -> list[float]:
    """The value of a group at each width, with its best units kept."""
    sums = [0.0, *accumulate(sorted(salience, reverse=True))]
    return [log(max(value, 1e-30)) for value in sums] if relative else sums


def multiples(width: int, step: int) -> list[int]:
    """The multiples of `step` up to `width`, and `width` itself."""
    return sorted({*range(step, width + 1, step), width})
