"""Placements: which expert is in which slot of which shard; shared by planner, group and placement files.

A placement file holds a placement and the name of its model.
"""

import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fewshard_models.errors import PlacementError
from fewshard_models.files import whole_file

EMPTY = -1


@dataclass(frozen=True, slots=True, eq=False)
class Placement:
    """An assignment of experts to slots. Read-only; the array is copied.

    slots: int32 [num_layers, num_shards, slots_per_shard], the expert in each slot; -1 if empty.
    num_experts: experts per layer.

    A placement may be incomplete, such as the one that survivors hold after a loss, until `check` has passed.
    """

    slots: NDArray[np.int32]
    num_experts: int

    def __post_init__(self) -> None:
        slots = np.array(self.slots, dtype=np.int32)
        slots.setflags(write=False)
        object.__setattr__(self, "slots", slots)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Placement):
            return NotImplemented
        return self.num_experts == other.num_experts and np.array_equal(self.slots, other.slots)

    __hash__ = None  # type: ignore[assignment]

    @property
    def num_layers(self) -> int:
        return int(self.slots.shape[0])

    @property
    def num_shards(self) -> int:
        return int(self.slots.shape[1])

    @property
    def slots_per_shard(self) -> int:
        return int(self.slots.shape[2])

    def copies(self) -> NDArray[np.int64]:
        """Number of slots that hold each expert, [num_layers, num_experts]. Indices must be in range."""
        flat = self.slots.reshape(self.num_layers, -1).astype(np.int64)
        keys = flat + 1 + np.arange(self.num_layers)[:, None] * (self.num_experts + 1)
        counts = np.bincount(keys.ravel(), minlength=self.num_layers * (self.num_experts + 1))
        return counts.reshape(self.num_layers, self.num_experts + 1)[:, 1:]

    def experts_on(self, shard: int) -> tuple[tuple[int, ...], ...]:
        """The sorted experts of that shard in each layer."""
        return tuple(tuple(sorted(row[row != EMPTY].tolist())) for row in self.slots[:, shard])

    def without(self, shards: Collection[int]) -> "Placement":
        """The placement of the other shards, in order; it may be incomplete."""
        return Placement(np.delete(self.slots, sorted(shards), axis=1), self.num_experts)

    def check(self) -> None:
        """Raise PlacementError unless every expert is placed, and none twice on one shard."""
        if self.slots.ndim != 3 or 0 in self.slots.shape or self.num_experts < 1:
            raise PlacementError(
                f"a placement is [layers, shards, slots a shard] of at least one expert, "
                f"not {list(self.slots.shape)} of {self.num_experts}"
            )
        outside = (self.slots < EMPTY) | (self.slots >= self.num_experts)
        if outside.any():
            raise PlacementError(
                f"{_slot(outside)} holds {self.slots[outside][0]}, which is no expert: there are "
                f"{self.num_experts}, from 0, and -1 for an empty slot"
            )
        missing = self.copies() == 0
        if missing.any():
            layer, expert = np.argwhere(missing)[0]
            raise PlacementError(
                f"layer {layer}: no shard holds expert {expert} ({missing.sum()} missing in all layers)"
            )
        ordered = np.sort(self.slots, axis=2)
        twice = (ordered[..., 1:] == ordered[..., :-1]) & (ordered[..., 1:] != EMPTY)
        if twice.any():
            layer, shard, slot = np.argwhere(twice)[0]
            raise PlacementError(
                f"layer {layer}, shard {shard} holds expert {ordered[layer, shard, slot]} twice; "
                "copies belong on different shards"
            )

    def to_json(self) -> dict[str, Any]:
        """`num_experts` and `slots`; callers that write a file add the model's name."""
        return {"num_experts": self.num_experts, "slots": self.slots.tolist()}

    @classmethod
    def from_json(cls, fields: Mapping[str, Any]) -> "Placement":
        """The placement from `to_json`, checked; other fields are ignored. Raises PlacementError."""
        num_experts = fields.get("num_experts")
        if not isinstance(num_experts, int) or isinstance(num_experts, bool):
            raise PlacementError("a placement needs num_experts, a whole number")
        placement = cls(_whole_numbers(fields.get("slots")), num_experts)
        placement.check()
        return placement


def contiguous(num_layers: int, num_experts: int, num_shards: int, slots_per_shard: int) -> Placement:
    """Neighbouring experts together, divided as evenly as possible, one copy each. Raises PlacementError."""
    owners = np.arange(num_experts) * num_shards // max(num_experts, 1)
    return _single_copies(owners, num_layers, num_shards, slots_per_shard)


def round_robin(num_layers: int, num_experts: int, num_shards: int, slots_per_shard: int) -> Placement:
    """Expert e on shard e modulo `num_shards`, one copy each. Raises PlacementError."""
    owners = np.arange(num_experts) % max(num_shards, 1)
    return _single_copies(owners, num_layers, num_shards, slots_per_shard)


def require_room(num_experts: int, num_shards: int, slots_per_shard: int) -> None:
    """Raise PlacementError, with the number of missing slots, if the slots cannot hold every expert once."""
    if min(num_experts, num_shards, slots_per_shard) < 1:
        raise PlacementError(
            f"{num_experts} experts on {num_shards} shards of {slots_per_shard} slots: "
            "each must be at least 1"
        )
    short = num_experts - num_shards * slots_per_shard
    if short > 0:
        raise PlacementError(
            f"{num_experts} experts a layer do not fit into {num_shards} shards x {slots_per_shard} slots: "
            f"{short} slots are missing; give at least {-(-num_experts // num_shards)} slots a shard "
            f"or {-(-num_experts // slots_per_shard)} shards"
        )


def require_work(num_experts: int, num_shards: int) -> None:
    """Raise PlacementError if some shards would have no expert, since there are no copies."""
    if num_shards > num_experts:
        raise PlacementError(
            f"{num_shards} shards for {num_experts} experts a layer: {num_shards - num_experts} shards would "
            f"hold none; take at most {num_experts} shards, or a placement with copies (balanced)"
        )


def _single_copies(
    owners: NDArray[np.int64], num_layers: int, num_shards: int, slots_per_shard: int
) -> Placement:
    """Each expert once, on its owner; the same in every layer."""
    require_room(len(owners), num_shards, slots_per_shard)
    require_work(len(owners), num_shards)
    layer = np.full((num_shards, slots_per_shard), EMPTY, np.int32)
    for shard in range(num_shards):
        own = np.flatnonzero(owners == shard)
        layer[shard, : len(own)] = own
    return Placement(np.repeat(layer[None], num_layers, axis=0), len(owners))


def _whole_numbers(slots: ArrayLike | None) -> NDArray[np.int32]:
    """Nested lists as an array; raises PlacementError for ragged lists, fractions and strings."""
    try:
        array = np.array(slots)
    except ValueError as error:
        raise PlacementError("the slots' lists differ in length; every shard has as many slots") from error
    if array.dtype.kind != "i" or np.abs(array).max(initial=0) > np.iinfo(np.int32).max:
        raise PlacementError("slots must be lists of whole numbers: the expert in each slot, -1 where empty")
    return array.astype(np.int32)


def _slot(where: NDArray[np.bool_]) -> str:
    layer, shard, slot = np.argwhere(where)[0]
    return f"layer {layer}, shard {shard}, slot {slot}"


def write_placement(file: Path, placement: Placement, model: str) -> None:
    """Write the file atomically."""
    with whole_file(file) as partial:
        partial.write_text(json.dumps({"model": model, **placement.to_json()}) + "\n", encoding="utf-8")


def read_placement(file: Path, model: str) -> Placement:
    """The placement in `file`. Raises PlacementError if it is unreadable, invalid or for another model."""
    try:
        fields = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise PlacementError(f"{file} is no readable placement file: {error}") from error
    if not isinstance(fields, dict):
        raise PlacementError(f"{file} is no placement file: it holds no JSON object")
    require_model(fields, model, str(file))
    try:
        return Placement.from_json(fields)
    except PlacementError as error:
        raise PlacementError(f"{file}: {error}") from error


def require_model(fields: dict[str, Any], model: str, source: str) -> None:
    """Raise PlacementError unless the fields name this model."""
    named = fields.get("model")
    if named != model:
        raise PlacementError(
            f"{source} is a placement for {named!r}, not for {model!r}; plan one for this model"
        )
