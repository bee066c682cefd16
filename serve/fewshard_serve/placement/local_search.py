"""Improves one layer's placement by small changes, and keeps most of a current placement. `planner` calls it.

The search lowers the load of a layer's heaviest shard, one change at a time, until no change helps or the
goal is reached. Other functions count moves and match a new placement to the one in force.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fewshard_models.sharding import Placement
from fewshard_models.sharding.placement import EMPTY
from fewshard_serve.placement.packing import Layer

Slots = NDArray[np.int32]


def num_moves(current: Placement, new: Placement) -> int:
    """Return how many experts the shards must load that they do not hold, over all layers."""
    return int(moves_by_layer(current, new).sum())


def moves_by_layer(current: Placement, new: Placement) -> NDArray[np.int64]:
    """Return [num_layers]: how many experts the shards must load that they do not hold."""
    experts = max(current.num_experts, new.num_experts)
    pairs = zip(current.slots, new.slots, strict=True)
    return np.array([(_members(now, experts) & ~_members(before, experts)).sum() for before, now in pairs])


def adopt(loads: NDArray[np.float64], held: Slots, slots_per_shard: int) -> Layer:
    """Return one layer as currently held, with `slots_per_shard` slots a shard and every expert present.

    If there are fewer slots than before, spare copies are dropped first, then the lightest experts. Missing
    experts go to empty slots of light shards, the heaviest first; if no slot is empty, they replace spare
    copies.
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
    """Choose an empty slot, else one with a spare copy, such that its shard with the load is lightest."""
    for may in (layer.slots == EMPTY, layer.copies[layer.slots] > 1):
        if may.any():
            after = layer.shard_loads[:, None] - layer.pieces[layer.slots] + load
            shard, slot = np.unravel_index(np.where(may, after, np.inf).argmin(), may.shape)
            return int(shard), int(slot)
    raise AssertionError("every expert fits, so a slot is empty or holds a spare copy. This is a bug.")


def relabel(fresh: Slots, held: Slots) -> Slots:
    """Permute the shards of `fresh` [shards, slots] so that they keep many experts they hold now.

    Shards are interchangeable. Pairs that share the most experts are matched first. Experts that a shard
    keeps stay in their slots.
    """
    num_experts = int(max(fresh.max(), held.max())) + 1
    shared = _members(fresh, num_experts).astype(np.float32) @ _members(held, num_experts).T
    return _in_place(fresh[_matched(shared)], held)


def _matched(shared: NDArray[np.float32]) -> NDArray[np.int64]:
    """Assign each column its own row, greedily by the largest entries.

    In each round every remaining row proposes to its best remaining column, and each column takes the best
    proposal. Noise below one half makes equal rows propose to different columns.
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
    """Return the experts of `new` for each shard; those also in `held` keep their slots."""
    same = held[:, :, None] == new[:, None, :]
    kept = same.any(axis=2) & (held != EMPTY)
    coming = np.where(same.any(axis=1), EMPTY, new)
    # Sorting moves the free slots and the incoming experts to the front, in matching order.
    slots, ranks = np.argsort(kept, axis=1, kind="stable"), np.argsort(coming == EMPTY, axis=1, kind="stable")
    moved = np.empty_like(held)
    np.put_along_axis(moved, slots, np.take_along_axis(coming, ranks, axis=1), axis=1)
    return np.where(kept, held, moved)


def _members(slots: Slots, num_experts: int) -> NDArray[np.bool_]:
    """Return [shards, num_experts]: whether the shard holds the expert."""
    member = np.zeros((len(slots), num_experts + 1), bool)
    member[np.arange(len(slots))[:, None], slots] = True
    return member[:, :num_experts]


# The number of array elements that the search for one further copy may examine.
MAX_ELEMENTS = 1 << 15
LEAST_GAIN = 1e-9


@dataclass(frozen=True, slots=True)
class Change:
    """A change to a layer: an exchange of two slots if `other` is set, else one `put`.

    gain: the decrease of the potential.
    num_moves: experts that must be loaded.
    """

    gain: float
    num_moves: int
    shard: int
    slot: int
    expert: int = EMPTY
    other: int = -1
    other_slot: int = -1

    def apply(self, layer: Layer) -> None:
        if self.other >= 0:
            layer.exchange(self.shard, self.slot, self.other, self.other_slot)
        else:
            layer.put(self.shard, self.slot, self.expert)


def improve(layer: Layer, goal: float, max_changes: int, frugal: bool) -> None:
    """Change the layer until its heaviest shard reaches `goal`, nothing helps, or `max_changes` are made.

    `frugal` takes the change with the largest gain for each expert to load, for a placement that is in use.
    Otherwise exchanges are tried first, because they are cheap to find.
    """
    for _ in range(max_changes):
        if layer.heaviest <= goal:
            break
        change = _frugal_change(layer) if frugal else best_exchange(layer) or best_copy(layer)
        if change is None:
            break
        change.apply(layer)
    layer.refresh()


def _frugal_change(layer: Layer) -> Change | None:
    found = [change for change in (best_exchange(layer), best_copy(layer)) if change is not None]
    return max(found, key=lambda change: change.gain / max(change.num_moves, 0.1), default=None)


def potential(shard_loads: NDArray[np.float64], heaviest: float) -> NDArray[np.float64]:
    """Return (load / heaviest)**32 of each shard. Their sum falls as the heaviest shards do."""
    share = shard_loads / heaviest
    for _ in range(5):
        share = share * share
    return share


def best_exchange(layer: Layer) -> Change | None:
    """Find the swap of a slot of the heaviest shard with another's that lowers their maximum most."""
    shard = int(layer.shard_loads.argmax())
    mine, heaviest = layer.slots[shard], layer.heaviest
    less = layer.pieces[mine][:, None, None] - layer.pieces[layer.slots][None]
    pair = np.maximum(heaviest - less, layer.shard_loads[None, :, None] + less)
    pair[layer.holds[mine]] = np.inf
    pair[:, layer.holds[layer.slots, shard]] = np.inf
    pair[:, shard] = np.inf
    slot, other, other_slot = (int(i) for i in np.unravel_index(pair.argmin(), pair.shape))
    if pair[slot, other, other_slot] >= heaviest * (1 - LEAST_GAIN):
        return None
    before = layer.shard_loads[[shard, other]]
    after = before + np.array([-1.0, 1.0]) * less[slot, other, other_slot]
    gain = float((potential(before, heaviest) - potential(after, heaviest)).sum())
    moves = int(mine[slot] != EMPTY) + int(layer.slots[other, other_slot] != EMPTY)
    return Change(gain, moves, shard, slot, other=other, other_slot=other_slot)


def best_copy(layer: Layer) -> Change | None:
    """Find the best further copy of an expert of the heaviest shard, or the best removal of a copy.

    A further copy takes an empty slot or replaces a spare copy. If there are too many slots to examine, only
    those of the lightest shards are.
    """
    shard = int(layer.shard_loads.argmax())
    mine = layer.slots[shard][layer.slots[shard] != EMPTY]
    num_shards, slots_per_shard = layer.slots.shape
    few = max(MAX_ELEMENTS // (num_shards * slots_per_shard * max(len(mine), 1)), 2)
    lightest = np.argsort(layer.shard_loads, kind="stable")[:few]
    shards, slots = np.repeat(lightest, slots_per_shard), np.tile(np.arange(slots_per_shard), len(lightest))
    options = [_further_copy(layer, int(expert), shards, slots) for expert in mine]
    options += [_copy_less(layer, shard, slot) for slot in range(slots_per_shard)]
    return max((each for each in options if each is not None), key=lambda each: each.gain, default=None)


def _further_copy(
    layer: Layer, expert: int, shards: NDArray[np.int64], slots: NDArray[np.int64]
) -> Change | None:
    """Find the best of these slots for one more copy of the expert."""
    there = layer.slots[shards, slots]
    may = ((there == EMPTY) | (layer.copies[there] > 1)) & ~layer.holds[expert, shards]
    if not may.any():
        return None
    shards, slots, there = shards[may], slots[may], there[may]
    piece = layer.loads[expert] / (layer.copies[expert] + 1)
    fewer = layer.loads[there] / np.maximum(layer.copies[there] - 1, 1) - layer.pieces[there]
    base = layer.shard_loads + layer.holds[expert] * (piece - layer.pieces[expert])
    after = base + layer.holds[there] * fewer[:, None]
    after[np.arange(len(shards)), shards] += piece - layer.pieces[there] - fewer
    return _gaining(layer, after, 1, shards, slots, expert)


def _copy_less(layer: Layer, shard: int, slot: int) -> Change | None:
    """Empty one slot of the shard if its expert has other copies."""
    expert = int(layer.slots[shard, slot])
    if expert == EMPTY or layer.copies[expert] < 2:
        return None
    piece = layer.loads[expert] / (layer.copies[expert] - 1)
    after = layer.shard_loads + layer.holds[expert] * (piece - layer.pieces[expert])
    after[shard] -= piece
    return _gaining(layer, after[None], 0, np.array([shard]), np.array([slot]), EMPTY)


def _gaining(
    layer: Layer,
    after: NDArray[np.float64],
    num_moves: int,
    shards: NDArray[np.int64],
    slots: NDArray[np.int64],
    expert: int,
) -> Change | None:
    """Return the row of `after` [options, num_shards] with the least potential, if it is less than now.

    Options that make the heaviest shard heavier are excluded; the sum of potentials alone would allow them.
    """
    now = float(potential(layer.shard_loads, layer.heaviest).sum())
    heavier = after.max(axis=1) > layer.heaviest
    then = np.where(heavier, np.inf, potential(after, layer.heaviest).sum(axis=1))
    best = int(then.argmin())
    if then[best] >= now * (1 - LEAST_GAIN):
        return None
    return Change(now - float(then[best]), num_moves, int(shards[best]), int(slots[best]), expert)
