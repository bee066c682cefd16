"""First placements: copies of experts, packing onto shards, and nodes. `planner` calls it.

`copy_counts` chooses the number of copies of each expert. `pack` assigns them, heaviest first, to the
lightest shard with room. The rule is the one DeepSeek published for its expert-parallel load balancer (EPLB,
2025), with two differences: copies of an expert are always on different shards, and fewer copies than fit are
tried too. Both work on many problems at once, one a row. `arrange` assigns shards to nodes; node n has the
n-th run of shard numbers. `Layer` is one layer's placement while `local_search` changes it.
"""

import numpy as np
from numpy.typing import NDArray

from fewshard_models.sharding.placement import EMPTY


class Layer:
    """The mutable placement of one layer. The copies of an expert share its load equally.

    slots: [num_shards, slots_per_shard] experts, or -1.
    holds: [num_experts + 1, num_shards]; the last row, which index -1 reaches, is all false.
    copies: [num_experts + 1], number of copies.
    pieces: [num_experts + 1], load of one copy; the last is 0.
    shard_loads: [num_shards].
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
        """Recompute pieces and shard loads, so that rounding errors do not accumulate."""
        self.pieces = self.loads / np.maximum(self.copies, 1)
        self.shard_loads: NDArray[np.float64] = self.pieces[self.slots].sum(axis=1)

    @property
    def num_shards(self) -> int:
        return int(self.slots.shape[0])

    @property
    def heaviest(self) -> float:
        return float(self.shard_loads.max())

    def put(self, shard: int, slot: int, expert: int) -> None:
        """Place the expert in the slot, or empty it with -1. The previous expert loses a copy."""
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


Loads = NDArray[np.float64]
Slots = NDArray[np.int32]


def arrange(loads: Loads, slots: Slots, nodes: int) -> Slots:
    """Permute the shards of each layer of `slots` [layers, shards, slots] so that nodes are evenly loaded.

    Shards are assigned heaviest first. Of the nodes with room that are about the lightest, each goes to the
    node that lacks copies of the most load. So the copies of a hot expert are near the tokens of many nodes.
    """
    num_layers, num_shards, _ = slots.shape
    if nodes == 1:
        return slots
    pieces = _pieces(loads, slots)
    shard_loads = pieces.sum(axis=2)
    order, slack = np.argsort(-shard_loads, axis=1, kind="stable"), shard_loads.mean(axis=1) / 2
    layers = np.arange(num_layers)
    filled, node_loads = np.zeros((num_layers, nodes), np.int64), np.zeros((num_layers, nodes))
    holds = np.zeros((num_layers, nodes, loads.shape[1] + 1), bool)
    arranged = np.empty_like(slots)
    for rank in range(num_shards):
        shard = order[:, rank]
        experts, weights = slots[layers, shard], pieces[layers, shard]
        lacking = (weights[:, None] * ~holds[layers[:, None], :, experts].swapaxes(1, 2)).sum(axis=2)
        room = np.where(filled < num_shards // nodes, node_loads, np.inf)
        light = room <= room.min(axis=1, keepdims=True) + slack[:, None]
        node = np.where(light, lacking, -1.0).argmax(axis=1)
        arranged[layers, node * (num_shards // nodes) + filled[layers, node]] = experts
        filled[layers, node] += 1
        node_loads[layers, node] += shard_loads[layers, shard]
        holds[layers[:, None], node[:, None], experts] = True
    return arranged


def near_share(loads: Loads, slots: Slots, nodes: int) -> float:
    """Return the share of load that has a copy on its own node, if tokens come evenly from all nodes."""
    num_layers, num_experts = loads.shape
    held = np.zeros((num_layers, nodes, num_experts + 1), bool)
    by_node = slots.reshape(num_layers, nodes, -1)
    np.put_along_axis(held, by_node, True, axis=2)
    near = held[..., :num_experts].mean(axis=1)
    return float((loads * near).sum() / loads.sum())


def _pieces(loads: Loads, slots: Slots) -> Loads:
    """Return [layers, shards, slots]: the load of each slot."""
    known = np.pad(loads, ((0, 0), (0, 1)))
    flat = slots.reshape(len(slots), -1)
    counts = np.stack([np.bincount(row[row != EMPTY], minlength=known.shape[1]) for row in flat])
    return np.asarray(np.take_along_axis(known / np.maximum(counts, 1), flat, axis=1).reshape(slots.shape))


Counts = NDArray[np.int64]


def copy_counts(loads: Loads, num_shards: int, num_slots: int, spares: list[int]) -> Counts:
    """Return [len(spares), rows, num_experts]: copies for each number of filled spare slots in `spares`.

    `loads`: [rows, num_experts]. `spares` is ascending. Each spare slot goes to the expert with the largest
        load a copy.
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
    """Return slots [rows, num_shards, slots_per_shard].

    `loads`, `copies`: [rows, num_experts]. A copy is left out if only shards that already hold the expert
        have room.
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
