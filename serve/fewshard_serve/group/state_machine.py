"""Decides which shards are in the group and what its next epoch is. It uses neither sockets nor clocks.

    start, join, rebalance   the members load weights and connect while batches run; then it is published
    loss                     the survivors do the same while batches wait

Every method runs on one thread; `membership` calls them. The thread that runs batches adopts a published
epoch and reports `activated` or `failed`.
"""

import logging
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from fewshard_models.sharding import Placement
from fewshard_serve.group.epoch import Epoch, cover
from fewshard_serve.group.readiness import LEADER, GroupRules, LossActions, Readiness
from fewshard_serve.group.shard_runtime import Prepared
from fewshard_serve.placement.local_search import num_moves

logger = logging.getLogger(__name__)


class GroupActions(LossActions, Protocol):
    """The actions that the state machine orders. `Membership` implements them."""

    def stage(self, shard: int, epoch: Epoch) -> None: ...

    def connect(self, shard: int, generation: int) -> None: ...

    def publish(self, epoch: Epoch, newcomers: Collection[int]) -> None:
        """Every member is ready: run batches with this epoch from now on."""

    def halt(self, generation: int) -> None:
        """Run no more batches with this epoch."""

    def expel(self, shard: int, reason: str) -> None:
        """Send a member away. It may come back later."""


@dataclass(slots=True)
class GroupCounters:
    """Counters since the start.

    num_reforms: changes of the set of shards.
    num_moves: experts that shards had to load.
    """

    num_reforms: int = 0
    num_moves: int = 0


@dataclass(slots=True)
class _Preparing:
    epoch: Epoch
    phase: str
    waiting: set[int]


@dataclass(slots=True)
class GroupStateMachine:
    """The members of a group, and its current and next epoch.

    target: the placement when all shards are present.
    active: the epoch that runs batches.
    problem: why no epoch can answer; "" if one can.
    is_unrecoverable: no epoch will ever answer unless somebody intervenes.
    loads: load of each expert, [num_layers, num_experts]; None if unknown.
    backend: the communication backend of the next epoch.
    """

    rules: GroupRules
    target: Placement
    orders: GroupActions
    members: set[int] = field(default_factory=lambda: {LEADER})
    active: Epoch | None = None
    problem: str = "starting"
    is_unrecoverable: bool = False
    loads: NDArray[np.int64] | None = None
    backend: str = "gloo"
    tally: GroupCounters = field(default_factory=GroupCounters)
    _untried: set[int] = field(default_factory=lambda: {LEADER})
    _is_broken: bool = False
    _generation: int = 0
    _preparing: _Preparing | None = None
    _published: Epoch | None = None
    _caps: dict[int, int] = field(default_factory=dict)
    _readiness: Readiness = field(init=False)

    def __post_init__(self) -> None:
        self._readiness = Readiness(self.orders)

    def joined(self, shard: int) -> None:
        """A worker that can serve as this shard has joined."""
        self.members.add(shard)
        self._untried.add(shard)
        self._caps.clear()
        self._decide()

    def left(self, shard: int, reason: str) -> None:
        """A worker has left."""
        if shard not in self.members:
            return
        logger.warning("shard %d is lost: %s", shard, reason)
        self.members.discard(shard)
        self._caps.clear()
        if self.active is not None and shard in self.active.live:
            self._break()
        self._drop_preparations(shard)
        self._decide()

    def objected(self, problem: str) -> None:
        """A worker connected that cannot take part."""
        logger.error("%s", problem)
        if self.active is None:
            self.problem, self.is_unrecoverable = problem, True

    def prepared(self, shard: int, report: Prepared) -> None:
        """A member has finished, or failed, a phase of the epoch in preparation, or its part of a standby."""
        if report.phase == "stand_by":
            self._readiness.stood_by(shard, report)
            return
        preparing = self._preparing
        if preparing is None or (report.generation, report.phase) != (
            preparing.epoch.generation,
            preparing.phase,
        ):
            return
        if report.problem:
            self._could_not(shard, report)
            return
        preparing.waiting.discard(shard)
        if not preparing.waiting:
            self._advance(preparing)

    def activated(self, generation: int) -> None:
        """The published epoch runs batches now."""
        published = self._published
        if published is None or published.generation != generation:
            self._abandoned_was_adopted()
            return
        old, self.active, self._published = self.active, published, None
        self._is_broken, self.problem = False, ""
        self._untried -= set(published.live)
        if old is not None:
            self.tally.num_reforms += old.live != published.live
            self.tally.num_moves += num_moves(old.placement, published.placement)
        logger.info(
            "generation %d: shards %s of %d%s",
            generation,
            list(published.live),
            self.rules.num_shards,
            "" if published.is_complete else ", some experts missing",
        )
        self._decide()
        self._prepare_for_losses()

    def _prepare_for_losses(self) -> None:
        epoch = self.active
        is_settled = (
            epoch is not None and self._preparing is None and len(epoch.live) == self.rules.num_shards
        )
        if epoch is not None and is_settled:
            self._readiness.prepare(epoch, self.rules, self.loads)
        else:
            self._readiness.forget()

    def failed(self, generation: int) -> None:
        """A batch failed with this epoch, which cannot be used again."""
        if self._published is not None and self._published.generation == generation:
            self._published = None
        if self.active is not None and self.active.generation == generation:
            self._break()
        self._decide()

    def answered_wrongly(self, generation: int, newcomers: Collection[int], problem: str) -> None:
        """With the newcomers of a published epoch, known inputs got wrong answers."""
        if self._published is None or self._published.generation != generation:
            return
        self._published = None
        if self.active is None:
            self.problem, self.is_unrecoverable = problem, True
            return
        for shard in newcomers:
            self.orders.expel(shard, problem)
            self.members.discard(shard)
        self._decide()

    def retarget(self, target: Placement) -> None:
        """Use this placement as the target from now on."""
        self.target = target
        if not self._is_broken:
            self._preparing = None
        self._decide()

    def _abandoned_was_adopted(self) -> None:
        """The members adopted an epoch that was just abandoned. The previous one has ended: stop it and
        decide again."""
        if self.active is not None:
            self._break()
        self._decide()

    def _break(self) -> None:
        assert self.active is not None
        if not self._is_broken:
            self._is_broken = True
            self._preparing = self._published = None
            self.orders.halt(self.active.generation)

    def _drop_preparations(self, lost: int) -> None:
        if self._preparing is not None and lost in self._preparing.epoch.live:
            self._preparing = None
        if self._published is not None and lost in self._published.live:
            self._published = None

    def _decide(self) -> None:
        """Begin the wanted epoch, unless one is in preparation or it already runs."""
        if self._preparing is not None or self._published is not None or self.is_unrecoverable:
            return
        epoch = self._wanted()
        if epoch is None:
            return
        self._generation = epoch.generation
        self._preparing = _Preparing(epoch, "stage", set(epoch.live))
        for shard in epoch.live:
            self.orders.stage(shard, epoch)

    def _wanted(self) -> Epoch | None:
        everyone = sorted(self.members)
        if self.active is None:
            if len(everyone) < self.rules.num_shards:
                missing = sorted(set(range(self.rules.num_shards)) - self.members)
                self.problem = f"waiting for {_shards(missing)}"
                return None
            return self._epoch(everyone)
        if self._is_broken:
            return self._after_loss(everyone)
        epoch = self._epoch(everyone)
        is_news = epoch.live != self.active.live or epoch.placement != self.active.placement
        return epoch if is_news and self._is_no_worse(epoch) else None

    def _after_loss(self, everyone: list[int]) -> Epoch | None:
        """Prefer the survivors, who have most experts in memory; add newcomers if these do not suffice."""
        assert self.active is not None
        survivors = [shard for shard in self.active.live if shard in self.members]
        with_survivors = self._epoch(survivors)
        if with_survivors.is_complete:
            return self._readiness.on_standby(with_survivors)
        with_everyone = self._epoch(everyone)
        if with_everyone.is_complete or self.rules.allows_degraded:
            return with_everyone
        lost = sorted(set(range(self.rules.num_shards)) - self.members)
        self.problem = (
            f"{_shards(lost)} lost, and the others have no room for the experts; waiting for a replacement"
        )
        return None

    def _is_no_worse(self, epoch: Epoch) -> bool:
        assert self.active is not None
        return epoch.is_complete or not self.active.is_complete

    def _epoch(self, live: Sequence[int]) -> Epoch:
        current = self.target if self.active is None else self.active.placement
        caps = [self._caps.get(shard, self.rules.max_slots) for shard in range(self.rules.num_shards)]
        placement = cover(self.target, current, live, caps, self.loads, self._readiness.spares)
        return Epoch(self._generation + 1, tuple(live), placement, self.backend)

    def _advance(self, preparing: _Preparing) -> None:
        epoch = preparing.epoch
        if preparing.phase == "stage":
            preparing.phase, preparing.waiting = "connect", set(epoch.live)
            for shard in epoch.live:
                self.orders.connect(shard, epoch.generation)
            return
        self._preparing, self._published = None, epoch
        self.orders.publish(epoch, [shard for shard in epoch.live if shard in self._untried])

    def _could_not(self, shard: int, report: Prepared) -> None:
        logger.warning("shard %d cannot %s: %s", shard, report.phase, report.problem)
        self._preparing = None
        if report.lacks_room and self.active is not None:
            # Limit the shard to what it holds now. `cover` then uses other shards, or leaves experts out.
            self._caps[shard] = int((self.active.placement.slots[:, shard] >= 0).sum(axis=1).max(initial=0))
        elif report.phase == "stage":
            if self.active is None or shard == LEADER:
                self.problem, self.is_unrecoverable = f"shard {shard}: {report.problem}", self.active is None
                return
            self.orders.expel(shard, report.problem)
            self.members.discard(shard)
        self._decide()


def _shards(numbers: Sequence[int]) -> str:
    return f"shard{'s' if len(numbers) > 1 else ''} {', '.join(map(str, numbers))}"
