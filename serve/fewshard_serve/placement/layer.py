"""One layer while it is planned: slots, copies and the load of each shard, kept in step."""

import numpy as np
from numpy.typing import NDArray

from fewshard_models.sharding.placement import EMPTY


class Layer:
    """Mutable. `slots` [num_shards, slots_per_shard]; an expert's load is shared equally by its copies.

    `holds` [num_experts + 1, num_shards] and `pieces` [num_experts + 1] have a last row for empty slots,
    which -1 reaches: nobody holds it, and it weighs nothing.
    """

    def __init__(self, loads: NDArray[np.float64], slots: NDArray[np.int32]) -> None:
        self.loads = np.append(loads, 0.0)
        self.slots = slots.copy()
        num_shards, slots_per_shard = slots.shape
        self.holds = np.zeros((len(loads) + 1, num_shards), bool)
        self.holds[slots.ravel(), np.repeat(np.arange(num_shards), slots_per_shard)] = True
        self.holds[EMPTY] = False
        self.copies = self.holds.sum(axis=1)
        self.refresh()

    def refresh(self) -> None:
        """Compute pieces and shard loads afresh, so that rounding does not gather."""
        self.pieces = self.loads / np.maximum(self.copies, 1)
        self.shard_loads: NDArray[np.float64] = self.pieces[self.slots].sum(axis=1)

    @property
    def num_shards(self) -> int:
        return int(self.slots.shape[0])

    @property
    def heaviest(self) -> float:
        return float(self.shard_loads.max())

    def put(self, shard: int, slot: int, expert: int) -> None:
        """Fill the slot with the expert, or empty it with -1; what was there has a copy less."""
        before = int(self.slots[shard, slot])
        self.slots[shard, slot] = expert
        self._count(before, shard, False)
        self._count(expert, shard, True)

    def _count(self, expert: int, shard: int, held: bool) -> None:
        if expert == EMPTY:
            return
        self.shard_loads -= self.holds[expert] * self.pieces[expert]
        self.holds[expert, shard] = held
        self.copies[expert] += 1 if held else -1
        self.pieces[expert] = self.loads[expert] / max(self.copies[expert], 1)
        self.shard_loads += self.holds[expert] * self.pieces[expert]

    def exchange(self, shard: int, slot: int, other: int, other_slot: int) -> None:
        """Swap two slots of two shards."""
        mine, theirs = self.slots[shard, slot], self.slots[other, other_slot]
        self.slots[shard, slot], self.slots[other, other_slot] = theirs, mine
        self.holds[mine, shard] = self.holds[theirs, other] = False
        self.holds[mine, other], self.holds[theirs, shard] = mine != EMPTY, theirs != EMPTY
        for each in (shard, other):
            self.shard_loads[each] = self.pieces[self.slots[each]].sum()
