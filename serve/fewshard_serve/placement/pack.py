"""First placements: how many copies each expert gets, then heaviest first onto the lightest shard with room.

The rule is the one DeepSeek published for its expert-parallel load balancer (EPLB, 2025), with two
differences: no two copies of an expert on one shard, and fewer copies than there is room for are tried too.
Many problems are packed at once, one a row.
"""

import numpy as np
from numpy.typing import NDArray

from fewshard_models.sharding.placement import EMPTY

Loads = NDArray[np.float64]
Counts = NDArray[np.int64]


def copy_counts(loads: Loads, num_shards: int, num_slots: int, spares: list[int]) -> Counts:
    """[len(spares), rows, num_experts]: copies where so many spare slots were filled, `spares` ascending.

    `loads`: [rows, num_experts]. Each spare slot goes to the expert with the largest load a copy.
    """
    rows = np.arange(len(loads))
    copies = np.ones(loads.shape, np.int64)
    taken = {0: copies.copy()}
    for filled in range(1, max(spares) + 1):
        per_copy = np.where(copies < num_shards, loads / copies, -1.0)
        largest = per_copy.argmax(axis=1)
        copies[rows, largest] += per_copy[rows, largest] >= 0
        if filled in spares:
            taken[filled] = copies.copy()
    return np.stack([taken[spare] for spare in spares])


def pack(loads: Loads, copies: Counts, num_shards: int, slots_per_shard: int) -> NDArray[np.int32]:
    """[rows, num_shards, slots_per_shard]; a copy that only shards with another have room for is left out.

    `loads`, `copies`: [rows, num_experts].
    """
    num_rows, _ = loads.shape
    order = np.argsort(-loads / copies, axis=1, kind="stable")
    slots = np.full((num_rows, num_shards, slots_per_shard), EMPTY, np.int32)
    shard_loads, filled = np.zeros((num_rows, num_shards)), np.zeros((num_rows, num_shards), np.int64)
    rows = np.arange(num_rows)
    for rank in range(loads.shape[1]):
        experts = order[:, rank]
        piece, wanted = loads[rows, experts] / copies[rows, experts], copies[rows, experts]
        has = np.zeros((num_rows, num_shards), bool)
        for copy in range(int(wanted.max())):
            free = np.where((filled < slots_per_shard) & ~has, shard_loads, np.inf)
            shard = free.argmin(axis=1)
            at = rows[(wanted > copy) & np.isfinite(free[rows, shard])]
            to = shard[at]
            slots[at, to, filled[at, to]] = experts[at]
            shard_loads[at, to] += piece[at]
            filled[at, to] += 1
            has[at, to] = True
    return slots
