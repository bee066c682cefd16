"""Who serves what in one generation of a group; made by `assembly`, carried out by every `seat`."""

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
    """`live`: the shards that take part, in the order of their ranks; `placement`: over all shards of the
    group, where those that are not live hold nothing. No two have the same `generation`."""

    generation: int
    live: tuple[int, ...]
    placement: Placement
    backend: str = "gloo"

    @property
    def is_complete(self) -> bool:
        """Whether every expert is on some shard."""
        return bool((self.placement.copies() > 0).all())

    def experts(self) -> list[Experts]:
        """For each rank its experts, layer by layer, in the order of their slots."""
        return [
            tuple(tuple(row[row != EMPTY].tolist()) for row in self.placement.slots[:, shard])
            for shard in self.live
        ]

    def to_fields(self) -> dict[str, Any]:
        fields = {"generation": self.generation, "live": self.live, "backend": self.backend}
        return fields | self.placement.to_json()

    @classmethod
    def from_fields(cls, fields: Mapping[str, Any]) -> "Epoch":
        # Not `from_json`: after a loss experts may be missing.
        placement = Placement(np.array(fields["slots"], dtype=np.int32), fields["num_experts"])
        return cls(fields["generation"], tuple(fields["live"]), placement, fields["backend"])


def has_same_experts(one: Placement, other: Placement) -> bool:
    """Whether each shard holds the same experts, in whatever slots."""
    return np.array_equal(_holdings(one), _holdings(other))


def cover(
    target: Placement,
    current: Placement,
    live: Sequence[int],
    max_slots: Sequence[int],
    loads: NDArray[np.int64] | None = None,
) -> Placement:
    """`target` without the shards that are not live; each expert this leaves nowhere goes to one that is.

    To a shard that holds it now, if there is one, else to the one with the least load that has a slot left
    of its `max_slots`; the heaviest expert first. Where no slot is left an expert stays nowhere.
    `loads` [num_layers, num_experts], by default all equal.
    """
    has, had = _holdings(target), _holdings(current)
    gone = [shard for shard in range(target.num_shards) if shard not in live]
    has[:, gone], had[:, gone] = False, False
    weights = np.ones(has[:, 0].shape) if loads is None else loads + 1.0
    for layer, held in enumerate(has):
        lost = np.flatnonzero(~held.any(axis=0))
        for expert in sorted(lost.tolist(), key=lambda expert: -weights[layer, expert]):
            _place(expert, held, had[layer], live, max_slots, weights[layer])
    return _placement(has, target, live)


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
    np.put_along_axis(found, placement.slots.astype(np.int64), True, axis=2)  # -1 is the last
    return found[:, :, :-1]


def _placement(has: NDArray[np.bool_], target: Placement, live: Sequence[int]) -> Placement:
    """The slots of `target` where they stand, and what came to them behind."""
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
