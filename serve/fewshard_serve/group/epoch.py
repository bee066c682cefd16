"""Which shards serve which experts in one generation. `state_machine` decides, `shard_runtime` executes."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fewshard_models.sharding import Placement
from fewshard_models.sharding.placement import EMPTY
from fewshard_models.sharding.shard import Experts


@dataclass(frozen=True, slots=True)
class Epoch:
    """One generation of a group.

    generation: unique number.
    live: the shards that take part, in the order of their ranks.
    placement: the experts of all shards of the group; shards that are not live have none.
    backend: the communication backend, gloo or nccl.
    standby: the number of the connections that were made beforehand for these shards; 0 for none.
    """

    generation: int
    live: tuple[int, ...]
    placement: Placement
    backend: str = "gloo"
    standby: int = 0

    @property
    def is_complete(self) -> bool:
        """Whether every expert is on at least one shard."""
        return bool((self.placement.copies() > 0).all())

    def experts(self) -> list[Experts]:
        """Return the experts of each rank, layer by layer, in the order of their slots."""
        return [
            tuple(tuple(row[row != EMPTY].tolist()) for row in self.placement.slots[:, shard])
            for shard in self.live
        ]

    def to_fields(self) -> dict[str, Any]:
        fields = {"generation": self.generation, "live": self.live, "backend": self.backend}
        return {**fields, "standby": self.standby, **self.placement.to_json()}

    @classmethod
    def from_fields(cls, fields: Mapping[str, Any]) -> "Epoch":
        # Not `from_json`, which rejects missing experts: after a loss some may be missing.
        placement = Placement(np.array(fields["slots"], dtype=np.int32), fields["num_experts"])
        live, standby = tuple(fields["live"]), fields["standby"]
        return cls(fields["generation"], live, placement, fields["backend"], standby)


def has_same_experts(one: Placement, other: Placement) -> bool:
    """Return whether each shard has the same experts in both, in any slots."""
    return np.array_equal(_holdings(one), _holdings(other))


def cover(
    target: Placement,
    current: Placement,
    live: Sequence[int],
    max_slots: Sequence[int],
    loads: NDArray[np.int64] | None = None,
    spares: NDArray[np.bool_] | None = None,
) -> Placement:
    """Return `target` restricted to the live shards, with each expert that this loses moved to a live one.

    A lost expert goes to a shard that holds it now, or as a spare, if there is one; otherwise to the least
    loaded shard with fewer experts than its `max_slots`. The heaviest experts are placed first. An expert
    stays missing if no slot is free.

    loads: [num_layers, num_experts]; equal by default.
    spares: [num_layers, num_shards, num_experts], the spares that each shard holds; none by default.
    """
    has, had = _holdings(target), _holdings(current)
    if spares is not None:
        had |= spares
    gone = [shard for shard in range(target.num_shards) if shard not in live]
    has[:, gone], had[:, gone] = False, False
    weights = np.ones(has[:, 0].shape) if loads is None else loads + 1.0
    for layer, held in enumerate(has):
        lost = np.flatnonzero(~held.any(axis=0))
        for expert in sorted(lost.tolist(), key=lambda expert: -weights[layer, expert]):
            _place(expert, held, had[layer], live, max_slots, weights[layer])
    return _placement(has, target, live)


Blocks = list[list[list[int]]]
"""Experts of one shard: for each layer, the blocks in which it holds them."""


def spares_for_losses(
    placement: Placement,
    losses: Sequence[int],
    max_slots: Sequence[int],
    num_spares: int,
    loads: NDArray[np.int64] | None = None,
) -> dict[int, Blocks]:
    """Return for each shard the experts that it would take over, a block for each single loss.

    losses: the shards that may be lost.
    num_spares: the most experts of all layers for a shard; the heaviest go first.
    """
    now = _holdings(placement)
    weights = np.zeros((now.shape[0], now.shape[2])) if loads is None else loads
    everyone = range(placement.num_shards)
    found: dict[int, list[tuple[float, int, int, int]]] = {shard: [] for shard in everyone}
    for lost in losses:
        then = cover(placement, placement, [one for one in everyone if one != lost], max_slots, loads)
        for layer, shard, expert in np.argwhere(_holdings(then) & ~now).tolist():
            found[shard].append((-float(weights[layer, expert]), layer, lost, expert))
    return {shard: _blocks(sorted(some)[:num_spares], now.shape[0]) for shard, some in found.items()}


def _blocks(pieces: Sequence[tuple[float, int, int, int]], num_layers: int) -> Blocks:
    layers: list[dict[int, list[int]]] = [{} for _ in range(num_layers)]
    for _, layer, lost, expert in pieces:
        layers[layer].setdefault(lost, []).append(expert)
    return [[sorted(experts) for _, experts in sorted(layer.items())] for layer in layers]


def held_in(blocks: Mapping[int, Blocks], like: Placement) -> NDArray[np.bool_]:
    """Return the experts in the blocks of each shard, [num_layers, num_shards, num_experts]."""
    found = np.zeros((*like.slots.shape[:2], like.num_experts), dtype=bool)
    for shard, layers in blocks.items():
        for layer, some in enumerate(layers):
            found[layer, shard, [expert for experts in some for expert in experts]] = True
    return found


def _place(
    expert: int,
    held: NDArray[np.bool_],
    had: NDArray[np.bool_],
    live: Sequence[int],
    max_slots: Sequence[int],
    weights: NDArray[np.float64],
) -> None:
    copies = np.maximum(held.sum(axis=0), 1)
    with_room = [shard for shard in live if held[shard].sum() < max_slots[shard]]
    if with_room:
        best = min(
            with_room, key=lambda shard: (not had[shard, expert], held[shard] @ (weights / copies), shard)
        )
        held[best, expert] = True


def _holdings(placement: Placement) -> NDArray[np.bool_]:
    """bool [num_layers, num_shards, num_experts]"""
    found = np.zeros((*placement.slots.shape[:2], placement.num_experts + 1), dtype=bool)
    np.put_along_axis(found, placement.slots.astype(np.int64), True, axis=2)  # EMPTY is -1, the last index
    return found[:, :, :-1]


def _placement(has: NDArray[np.bool_], target: Placement, live: Sequence[int]) -> Placement:
    """Keep the slots of `target` in place, and add the other experts in free slots."""
    width = max(target.slots_per_shard, int(has.sum(axis=2).max()))
    slots = np.full((*has.shape[:2], width), EMPTY, dtype=np.int32)
    for layer, shard in np.ndindex(has.shape[0], has.shape[1]):
        if shard in live:
            own = target.slots[layer, shard]
            slots[layer, shard, : len(own)] = own
            more = np.setdiff1d(np.flatnonzero(has[layer, shard]), own)
            free = np.flatnonzero(slots[layer, shard] == EMPTY)
            slots[layer, shard, free[: len(more)]] = more
    return Placement(slots, target.num_experts)
