"""What a whole group prepares for the loss of each worker, so that a loss loads nothing and connects nothing.

Spares are copies of the experts that each shard would take over. A standby is the connections between all
shards but one. `state_machine` calls it.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from fewshard_serve.group.epoch import Blocks, Epoch, held_in, spares_for_losses
from fewshard_serve.group.shard_runtime import Prepared

LEADER = 0
MAX_STANDBY_SHARDS = 8
"""Each standby is another set of connections between all shards, so large groups have none."""


class LossActions(Protocol):
    """The actions that are ordered here. `Membership` implements them."""

    def keep_spares(self, shard: int, blocks: Blocks) -> None:
        """Hold copies of these experts, which the loss of another shard would ask for."""

    def stand_by(self, shard: int, number: int, generation: int, live: Sequence[int]) -> None:
        """Connect to these shards for the epoch that may follow `generation`. A report of it follows."""


@dataclass(frozen=True, slots=True)
class GroupRules:
    """Limits of a group.

    max_slots: the most experts of a layer that one shard may hold after losses.
    allows_degraded: answer without some experts rather than not at all.
    num_spares: copies of others' experts that one shard may hold in all layers.
    """

    num_shards: int
    max_slots: int
    allows_degraded: bool = False
    num_spares: int = 0


@dataclass(slots=True)
class _Standby:
    number: int
    waiting: set[int]


class Readiness:
    """The spares and standbys of the epoch that runs.

    spares: bool [num_layers, num_shards, num_experts], the experts of which each shard holds a copy; or None.
    """

    def __init__(self, orders: LossActions) -> None:
        self.spares: NDArray[np.bool_] | None = None
        self._orders = orders
        self._standbys: dict[tuple[int, ...], _Standby] = {}
        self._num_standbys = 0

    def prepare(self, epoch: Epoch, rules: GroupRules, loads: NDArray[np.int64] | None) -> None:
        """Order what this epoch of a whole group needs. Where the leader is lost, the group ends."""
        self.forget()
        workers = [shard for shard in epoch.live if shard != LEADER]
        if rules.num_spares:
            slots = [rules.max_slots] * rules.num_shards
            blocks = spares_for_losses(epoch.placement, workers, slots, rules.num_spares, loads)
            self.spares = held_in(blocks, epoch.placement)
            for shard in epoch.live:
                self._orders.keep_spares(shard, blocks[shard])
        if epoch.backend == "gloo" and rules.num_shards <= MAX_STANDBY_SHARDS:
            for lost in workers:
                self._order_standby(epoch.generation, tuple(one for one in epoch.live if one != lost))

    def forget(self) -> None:
        """Count on nothing that was prepared for an earlier epoch."""
        self.spares, self._standbys = None, {}

    def stood_by(self, shard: int, report: Prepared) -> None:
        """A shard has made the connections of a standby, or has failed to."""
        for live, standby in list(self._standbys.items()):
            if standby.number == report.generation:
                standby.waiting.discard(shard)
                if report.problem:
                    del self._standbys[live]

    def is_ready_for(self, live: tuple[int, ...]) -> bool:
        """Whether all these shards have made their connections."""
        standby = self._standbys.get(live)
        return standby is not None and not standby.waiting

    def on_standby(self, epoch: Epoch) -> Epoch:
        """Return the epoch with the connections that all its shards have made for it, if there are any."""
        is_ready = self.is_ready_for(epoch.live) and epoch.backend == "gloo"
        standby = self._standbys.pop(epoch.live, None)
        return replace(epoch, standby=standby.number) if is_ready and standby is not None else epoch

    def _order_standby(self, generation: int, live: tuple[int, ...]) -> None:
        self._num_standbys += 1
        self._standbys[live] = _Standby(self._num_standbys, set(live))
        for shard in live:
            self._orders.stand_by(shard, self._num_standbys, generation, live)
