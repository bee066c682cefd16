"""What a group holds already, and how a new placement keeps most of it."""

import numpy as np
from numpy.typing import NDArray

from fewshard_models.sharding import Placement
from fewshard_models.sharding.placement import EMPTY
from fewshard_serve.placement.layer import Layer

Slots = NDArray[np.int32]


def num_moves(current: Placement, new: Placement) -> int:
    """How many experts the shards must load that they do not hold, over all layers."""
    return int(moves_by_layer(current, new).sum())


def moves_by_layer(current: Placement, new: Placement) -> NDArray[np.int64]:
    """[num_layers]: how many experts the shards must load that they do not hold."""
    experts = max(current.num_experts, new.num_experts)
    pairs = zip(current.slots, new.slots, strict=True)
    return np.array([(_members(now, experts) & ~_members(before, experts)).sum() for before, now in pairs])


def adopt(loads: NDArray[np.float64], held: Slots, slots_per_shard: int) -> Layer:
    """One layer as it is held, with so many slots a shard and every expert somewhere.

    Where slots are fewer than before, spare copies leave first, then the lightest experts. Missing experts go
    to empty slots of light shards, heaviest first, and over spare copies where none is empty.
    """
    slots = np.full((len(held), slots_per_shard), EMPTY, np.int32)
    copies = np.bincount(held[held != EMPTY], minlength=len(loads))
    for shard, row in enumerate(held):
        own = row[row != EMPTY]
        if len(own) <= slots_per_shard and len(row) <= slots_per_shard:
            slots[shard, : len(row)] = row
            continue
        kept = own[np.lexsort((-loads[own], copies[own] > 1))][:slots_per_shard]
        slots[shard, : len(kept)] = kept
        np.subtract.at(copies, np.setdiff1d(own, kept), 1)
    layer = Layer(loads, slots)
    missing = np.flatnonzero(layer.copies[:-1] == 0)
    for expert in missing[np.argsort(-loads[missing], kind="stable")]:
        layer.put(*_room(layer, float(loads[expert])), int(expert))
    return layer


def _room(layer: Layer, load: float) -> tuple[int, int]:
    """The empty slot, else the spare copy's, whose shard is lightest with the load in it."""
    for may in (layer.slots == EMPTY, layer.copies[layer.slots] > 1):
        if may.any():
            after = layer.shard_loads[:, None] - layer.pieces[layer.slots] + load
            shard, slot = np.unravel_index(np.where(may, after, np.inf).argmin(), may.shape)
            return int(shard), int(slot)
    raise AssertionError("every expert fits, so a slot is empty or holds a spare copy. This is a bug.")


def relabel(fresh: Slots, held: Slots) -> Slots:
    """`fresh` [shards, slots] with its shards renamed so that they hold much of what they hold now.

    Shards are alike, so names are free; the pairs that share most experts are joined first. What a shard
    keeps stays in its slot.
    """
    num_experts = int(max(fresh.max(), held.max())) + 1
    shared = _members(fresh, num_experts).astype(np.float32) @ _members(held, num_experts).T
    return _in_place(fresh[_matched(shared)], held)


def _matched(shared: NDArray[np.float32]) -> NDArray[np.int64]:
    """For each column a row of its own, greedily by the largest entries.

    Round by round each row left asks for its best column left, and each column takes the best that asks.
    Noise below one half lets rows that are alike ask for different columns.
    """
    score = shared + np.random.default_rng(0).random(shared.shape, np.float32) / 2
    rows, columns = np.arange(len(shared)), np.arange(len(shared))
    row_of = np.empty(len(shared), np.int64)
    while len(rows):
        wanted = score.argmax(axis=1)
        asking = np.argsort(-score.max(axis=1), kind="stable")
        taken, first = np.unique(wanted[asking], return_index=True)
        row_of[columns[taken]] = rows[asking[first]]
        rows, columns = np.delete(rows, asking[first]), np.delete(columns, taken)
        score = np.delete(np.delete(score, asking[first], axis=0), taken, axis=1)
    return row_of


def _in_place(new: Slots, held: Slots) -> Slots:
    """The experts of `new` shard by shard, those of `held` where they are."""
    same = held[:, :, None] == new[:, None, :]
    kept = same.any(axis=2) & (held != EMPTY)
    coming = np.where(same.any(axis=1), EMPTY, new)
    # Sorting brings free slots and coming experts to the front, in step with one another.
    slots, ranks = np.argsort(kept, axis=1, kind="stable"), np.argsort(coming == EMPTY, axis=1, kind="stable")
    moved = np.empty_like(held)
    np.put_along_axis(moved, slots, np.take_along_axis(coming, ranks, axis=1), axis=1)
    return np.where(kept, held, moved)


def _members(slots: Slots, num_experts: int) -> NDArray[np.bool_]:
    """[shards, num_experts]: whether the shard holds the expert."""
    member = np.zeros((len(slots), num_experts + 1), bool)
    member[np.arange(len(slots))[:, None], slots] = True
    return member[:, :num_experts]
