"""The first placement of a group, placements that users request, and periodic rebalancing.

`backends.sharded_text` calls the placement functions. `leader` runs `Rebalancing`, which checks the loads
periodically and moves experts if the gain exceeds the cost.
"""

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fewshard_models.errors import PlacementError
from fewshard_models.sharding import Placement, contiguous, round_robin
from fewshard_models.sharding.placement import read_placement, require_model
from fewshard_models.sharding.transformers_body import ShardableConfig
from fewshard_models.text import FewshardTextConfig
from fewshard_serve.errors import MalformedRequest
from fewshard_serve.group.settings import ExpertsSettings
from fewshard_serve.group.view import GroupStatus
from fewshard_serve.placement.local_search import num_moves
from fewshard_serve.placement.planner import balanced
from fewshard_serve.placement.policy import Rebalancer


def _even(num_layers: int, num_experts: int, num_shards: int, slots_per_shard: int) -> Placement:
    """Balance for equal loads, because no load is known at the start."""
    return balanced(np.ones((num_layers, num_experts)), num_shards, slots_per_shard)


STARTS: dict[str, Callable[[int, int, int, int], Placement]] = {
    "balanced": _even,
    "contiguous": contiguous,
    "round_robin": round_robin,
}


def first_placement(
    settings: ExpertsSettings, config: FewshardTextConfig | ShardableConfig, model: str
) -> Placement:
    """Return the first placement, [expert layers, shards, slots].

    Raises PlacementError if the slots cannot hold the experts, or the file belongs to another model or group.
    """
    layers, experts = len(config.expert_layers), config.num_experts
    if settings.placement in STARTS:
        if settings.shards > experts and settings.slots_per_shard == "auto":
            raise PlacementError(
                f"there are {settings.shards} shards and {experts} experts a layer; use at most {experts} "
                "shards, or set slots_per_shard so that they hold copies"
            )
        return STARTS[settings.placement](layers, experts, settings.shards, settings.num_slots(experts))
    placement = read_placement(Path(settings.placement), model)
    require_shape(placement, layers, experts, settings.shards, settings.max_slots(experts))
    return placement


def require_shape(
    placement: Placement, num_layers: int, num_experts: int, num_shards: int, max_slots: int
) -> None:
    """Raise PlacementError unless layers, experts and shards match and the experts fit the slots."""
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
    """Return the placement that a body of `POST …/placement` requests. Raises MalformedRequest.

    The body is `{"model", "num_experts", "slots"}` as in a placement file, or `{"placement": "round_robin"}`.
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
    """Return the cost of a change: the experts that shards must load, and their bytes."""
    moves = num_moves(current, wanted)
    return {"moves": moves, "bytes": moves * num_bytes_an_expert}


logger = logging.getLogger(__name__)

APPLY_TIMEOUT_S = 60.0


@dataclass(slots=True)
class Rebalancing:
    """Checks a group's loads and moves experts.

    rebalancer: decides whether to change the placement.
    loads: returns the tokens of each expert since the start, [num_layers, num_experts].
    status: returns the group's status.
    place: applies a placement within a time limit in seconds; returns whether it took effect.
    """

    rebalancer: Rebalancer
    loads: Callable[[], NDArray[np.int64]]
    status: Callable[[], GroupStatus]
    place: Callable[[Placement, float], bool]
    _stopped: threading.Event = field(default_factory=threading.Event)

    def start(self, every_s: float) -> None:
        """Check every `every_s` seconds, in a thread."""
        threading.Thread(target=self._main, args=(every_s,), name="group-rebalance", daemon=True).start()

    def stop(self) -> None:
        self._stopped.set()

    def look(self, now_s: float) -> bool:
        """Decide once. Return whether experts were moved. A group that lacks shards is left alone."""
        self.rebalancer.observe(self.loads(), now_s)
        status = self.status()
        if status.problem or status.size < status.num_shards:
            return False
        decision = self.rebalancer.decide(status.placement, now_s)
        logger.info("rebalancing: %s", decision.reason)
        if decision.placement is None or not self.place(decision.placement, APPLY_TIMEOUT_S):
            return False
        self.rebalancer.changed(now_s)
        return True

    def _main(self, every_s: float) -> None:
        while not self._stopped.wait(every_s):
            try:
                self.look(time.monotonic())
            except Exception:  # an error in the planner must end neither rebalancing nor the group
                logger.exception("rebalancing failed")
