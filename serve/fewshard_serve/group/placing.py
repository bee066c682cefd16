"""Which placement a group begins with, and what people may ask of it; called by `backends.sharded_text`."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from fewshard_models.errors import PlacementError
from fewshard_models.sharding import Placement, contiguous, round_robin
from fewshard_models.sharding.files import read_placement, require_model
from fewshard_models.text import FewshardTextConfig
from fewshard_serve.errors import MalformedRequest
from fewshard_serve.group.settings import ExpertsSettings
from fewshard_serve.placement.balanced import balanced
from fewshard_serve.placement.retain import num_moves


def _even(num_layers: int, num_experts: int, num_shards: int, slots_per_shard: int) -> Placement:
    """Balanced for equal loads: at the start none is known."""
    return balanced(np.ones((num_layers, num_experts)), num_shards, slots_per_shard)


STARTS: dict[str, Callable[[int, int, int, int], Placement]] = {
    "balanced": _even,
    "contiguous": contiguous,
    "round_robin": round_robin,
}


def first_placement(settings: ExpertsSettings, config: FewshardTextConfig, model: str) -> Placement:
    """The placement to start with, [expert layers, shards, slots]. Raises PlacementError where the slots
    cannot hold the experts, or the file is another model's or another group's."""
    layers, experts = len(config.expert_layers), config.num_experts
    slots = settings.slots_per_shard or math.ceil(experts / settings.num_shards)
    if settings.placement in STARTS:
        return STARTS[settings.placement](layers, experts, settings.num_shards, slots)
    placement = read_placement(Path(settings.placement), model)
    require_shape(placement, layers, experts, settings.num_shards, settings.max_slots_per_shard or experts)
    return placement


def require_shape(
    placement: Placement, num_layers: int, num_experts: int, num_shards: int, max_slots: int
) -> None:
    """Raises PlacementError unless it is for as many layers, experts and shards, and fits their slots."""
    there = {"layers": placement.num_layers, "experts": placement.num_experts, "shards": placement.num_shards}
    wanted = {"layers": num_layers, "experts": num_experts, "shards": num_shards}
    for what, count in wanted.items():
        if there[what] != count:
            raise PlacementError(
                f"the placement is for {there[what]} {what}, this group has {count}; plan one for it"
            )
    most = int((placement.slots >= 0).sum(axis=2).max())
    if most > max_slots:
        raise PlacementError(
            f"the placement puts {most} experts of a layer on one shard, which may hold {max_slots}"
        )


def wanted_placement(wanted: dict[str, Any], current: Placement, max_slots: int, model: str) -> Placement:
    """The placement that a body of `POST …/placement` asks for. Raises MalformedRequest.

    `{"model", "num_experts", "slots"}`, as a placement file has them, or `{"placement": "round_robin"}`.
    """
    try:
        name = wanted.get("placement")
        if name is not None:
            return _named(name, current)
        require_model(wanted, model, "the body")
        placement = Placement.from_json(wanted)
        require_shape(placement, current.num_layers, current.num_experts, current.num_shards, max_slots)
    except PlacementError as error:
        raise MalformedRequest(str(error)) from error
    return placement


def _named(name: Any, current: Placement) -> Placement:
    plain = {"contiguous": contiguous, "round_robin": round_robin}
    if name not in plain:
        raise MalformedRequest(
            f"no placement {name!r} to choose by name; there are {', '.join(plain)}, or send its slots"
        )
    shape = current.num_layers, current.num_experts, current.num_shards, current.slots_per_shard
    return plain[name](*shape)


def describe_change(current: Placement, wanted: Placement, num_bytes_an_expert: int) -> dict[str, Any]:
    """What a change costs: experts that some shard has to load, and their bytes."""
    moves = num_moves(current, wanted)
    return {"moves": moves, "bytes": moves * num_bytes_an_expert}
