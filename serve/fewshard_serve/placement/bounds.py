"""What no placement can beat: the least load of the heaviest shard, and the least number of moves.

The model of both: an expert's load is shared equally by its copies, no two of which are on one shard.
"""

import numpy as np
from numpy.typing import NDArray

from fewshard_models.sharding.placement import EMPTY

Loads = NDArray[np.float64]
Slots = NDArray[np.int32]


def heaviest_bound(loads: Loads, num_shards: int, slots_per_shard: int) -> float:
    """A load that some shard reaches in every placement of one layer's `loads` [num_experts].

    The larger of two bounds, with R = shards x slots - experts spare slots:

    1. Pieces. R further copies can do no better than always splitting the largest piece; whatever piece is
       the largest then sits on some shard.
    2. Companions. Take the m heaviest experts H, and the d shards that hold a piece of one; d is at most
       m + R and at most all shards. Their d x slots slots hold H whole, and every other slot of theirs is
       empty, a further copy, or some expert's last piece: k slots of the rest hold at least k - (R minus the
       further copies of H) experts wholly, so the d shards bear at least H and the (d x slots - R - m)
       lightest experts beside H. The heaviest bears at least the mean of that, for the best d. With m = all
       experts it is the mean load of all shards.
    """
    return max(
        _largest_piece(loads, num_shards, slots_per_shard), _companions(loads, num_shards, slots_per_shard)
    )


def _largest_piece(loads: Loads, num_shards: int, slots_per_shard: int) -> float:
    """Bisection for the least T at which ceil(load / T) copies of all experts fit; a hair below it."""
    num_slots = num_shards * slots_per_shard
    low, high = float(loads.max()) / num_shards, float(loads.max())
    if _copies_needed(loads, low) <= num_slots:
        return low
    for _ in range(60):
        middle = (low + high) / 2
        if _copies_needed(loads, middle) <= num_slots:
            high = middle
        else:
            low = middle
    return low


def _copies_needed(loads: Loads, most: float) -> float:
    # A billionth of grace: rounding must not ask for a copy that arithmetic does not.
    return float(np.maximum(np.ceil(loads / max(most, 1e-300) * (1 - 1e-9)), 1).sum())


def _companions(loads: Loads, num_shards: int, slots_per_shard: int) -> float:
    num_experts = len(loads)
    spare = num_shards * slots_per_shard - num_experts
    ascending = np.sort(loads)
    light = np.concatenate([[0.0], np.cumsum(ascending)])
    m = np.arange(1, num_experts + 1)[:, None]
    d = np.arange(1, num_shards + 1)[None, :]
    heavy = light[-1] - light[num_experts - m]
    # The lightest beside H are the lightest of all, as many as there are beside H.
    beside = np.clip(d * slots_per_shard - spare - m, 0, num_experts - m)
    mean = np.where(d <= m + spare, (heavy + light[beside]) / d, np.inf)
    return float(mean.min(axis=1).max())


def moves_bound(loads: Loads, current: Slots, heaviest: float) -> int:
    """How many experts must at least be loaded to bring every shard of one layer to `heaviest` or below.

    `current`: [num_shards, slots_per_shard]. Counted are an expert's copies that ceil(load / heaviest) asks
    for beyond those there are, and, for each shard, the fewest of its single experts whose leaving brings
    what cannot leave without a load (experts without another copy) to `heaviest`. A single expert that leaves
    or is split is loaded elsewhere, and no expert is single on two shards, so the counts add up.
    """
    grace = heaviest * (1 + 1e-9)
    copies = np.bincount(current[current != EMPTY], minlength=len(loads))
    wanted = np.maximum(np.ceil(loads / max(grace, 1e-300)), 1).astype(np.int64)
    total = int(np.maximum(wanted - copies, 0).sum())
    stays = (copies == 1) & (wanted == 1)
    for row in current:
        held = row[row != EMPTY]
        total += _leaving(loads[held[stays[held]]], grace)
    return total


def _leaving(loads: Loads, most: float) -> int:
    """The fewest of these whose leaving brings the sum to `most`."""
    rest = loads.sum() - np.concatenate([[0.0], np.cumsum(np.sort(loads)[::-1])])
    return int(np.argmax(rest <= most)) if len(loads) else 0
