"""One layer while it is planned: slots, copies and the load of each shard, kept in step.

Which of the packed shards go to the same node; node n has the n-th run of shard numbers.

First placements: how many copies each expert gets, then heaviest first onto the lightest shard with room.

The rule is the one DeepSeek published for its expert-parallel load balancer (EPLB, 2025), with two
differences: no two copies of an expert on one shard, and fewer copies than there is room for are tried too.
Many problems are packed at once, one a row.
"""

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


Loads = NDArray[np.float64]
Slots = NDArray[np.int32]


def arrange(loads: Loads, slots: Slots, nodes: int) -> Slots:
    """`slots` [layers, shards, slots] with the shards of each layer renamed so that nodes are filled evenly.

    Heaviest first, each shard goes to a node with room that is about the lightest; of those to the one that
    lacks copies of the most load, so that a hot expert's copies are near the tokens of many nodes.
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
    """The share of all load that finds a copy on its own node, where tokens come evenly from all nodes."""
    num_layers, num_experts = loads.shape
    held = np.zeros((num_layers, nodes, num_experts + 1), bool)
    by_node = slots.reshape(num_layers, nodes, -1)
    np.put_along_axis(held, by_node, True, axis=2)
    near = held[..., :num_experts].mean(axis=1)
    return float((loads * near).sum() / loads.sum())


def _pieces(loads: Loads, slots: Slots) -> Loads:
    """[layers, shards, slots]: the load of each slot."""
    known = np.pad(loads, ((0, 0), (0, 1)))
    flat = slots.reshape(len(slots), -1)
    counts = np.stack([np.bincount(row[row != EMPTY], minlength=known.shape[1]) for row in flat])
    return np.asarray(np.take_along_axis(known / np.maximum(counts, 1), flat, axis=1).reshape(slots.shape))


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
