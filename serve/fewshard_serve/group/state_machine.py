"""Who is in the group, and what its next formation is: decisions alone, without sockets or clocks.

    start, join, rebalance   members stage the weights and connect, beside what runs; then it is published
    loss                     the survivors do the same, while batches wait

Every method runs on one thread. What has been published is taken up by the thread that runs batches, which
answers with `activated` or `failed`.
"""

import logging
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from fewshard_models.sharding import Placement
from fewshard_serve.group.epoch import Epoch, cover
from fewshard_serve.group.shard_runtime import Prepared
from fewshard_serve.placement.local_search import num_moves

logger = logging.getLogger(__name__)

LEADER = 0


class GroupActions(Protocol):
    """What an assembly has done by others."""

    def stage(self, shard: int, formation: Epoch) -> None: ...

    def connect(self, shard: int, generation: int) -> None: ...

    def publish(self, formation: Epoch, newcomers: Collection[int]) -> None:
        """Every member is ready for it; run batches with it from now on."""

    def halt(self, generation: int) -> None:
        """Run no more batches with it."""

    def expel(self, shard: int, reason: str) -> None:
        """Send a member away; it may come back later."""


@dataclass(frozen=True, slots=True)
class GroupRules:
    """`max_slots`: the most experts of a layer one shard may hold after losses; `allows_degraded`: whether
    answers without some experts are better than none."""

    num_shards: int
    max_slots: int
    allows_degraded: bool = False


@dataclass(slots=True)
class GroupCounters:
    """What happened since the start."""

    num_reforms: int = 0
    num_moves: int = 0


@dataclass(slots=True)
class _Preparing:
    formation: Epoch
    phase: str
    waiting: set[int]


@dataclass(slots=True)
class GroupStateMachine:
    """`problem`: why there is no formation that can answer; `is_unrecoverable`: nor will there be one unless
    somebody changes something. `target`: who holds what when all are there. `backend` is asked before each
    formation, of its shards."""

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

    def joined(self, shard: int) -> None:
        """A worker has come that can serve as this shard."""
        self.members.add(shard)
        self._untried.add(shard)
        self._caps.clear()
        self._decide()

    def left(self, shard: int, reason: str) -> None:
        """A worker has gone."""
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
        """A worker came that cannot take part."""
        logger.error("%s", problem)
        if self.active is None:
            self.problem, self.is_unrecoverable = problem, True

    def prepared(self, shard: int, report: Prepared) -> None:
        """A member has done, or could not do, what it was ordered."""
        preparing = self._preparing
        if preparing is None or (report.generation, report.phase) != (
            preparing.formation.generation,
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
        """The published formation runs batches now."""
        published = self._published
        if published is None or published.generation != generation:
            self._was_passed_over()
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

    def failed(self, generation: int) -> None:
        """A batch failed with this formation, which cannot be used again."""
        if self._published is not None and self._published.generation == generation:
            self._published = None
        if self.active is not None and self.active.generation == generation:
            self._break()
        self._decide()

    def answered_wrongly(self, generation: int, newcomers: Collection[int], problem: str) -> None:
        """With the newcomers of a published formation, known inputs get wrong answers."""
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
        """Place experts like this from now on."""
        self.target = target
        if not self._is_broken:
            self._preparing = None
        self._decide()

    def _was_passed_over(self) -> None:
        """One that was given up was taken up all the same, a moment before: what ran until then is gone."""
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
        if self._preparing is not None and lost in self._preparing.formation.live:
            self._preparing = None
        if self._published is not None and lost in self._published.live:
            self._published = None

    def _decide(self) -> None:
        """Begin the formation that is wanted, unless one is under way or already runs."""
        if self._preparing is not None or self._published is not None or self.is_unrecoverable:
            return
        formation = self._wanted()
        if formation is None:
            return
        self._generation = formation.generation
        self._preparing = _Preparing(formation, "stage", set(formation.live))
        for shard in formation.live:
            self.orders.stage(shard, formation)

    def _wanted(self) -> Epoch | None:
        everyone = sorted(self.members)
        if self.active is None:
            if len(everyone) < self.rules.num_shards:
                missing = sorted(set(range(self.rules.num_shards)) - self.members)
                self.problem = f"waiting for {_shards(missing)}"
                return None
            return self._formation(everyone)
        if self._is_broken:
            return self._after_loss(everyone)
        formation = self._formation(everyone)
        is_news = formation.live != self.active.live or formation.placement != self.active.placement
        return formation if is_news and self._is_no_worse(formation) else None

    def _after_loss(self, everyone: list[int]) -> Epoch | None:
        """The survivors first, who have most of it in memory; newcomers where these do not suffice."""
        assert self.active is not None
        survivors = [shard for shard in self.active.live if shard in self.members]
        with_survivors = self._formation(survivors)
        if with_survivors.is_complete:
            return with_survivors
        with_everyone = self._formation(everyone)
        if with_everyone.is_complete or self.rules.allows_degraded:
            return with_everyone
        lost = sorted(set(range(self.rules.num_shards)) - self.members)
        self.problem = (
            f"{_shards(lost)} lost, and the others have no room for the experts; waiting for a replacement"
        )
        return None

    def _is_no_worse(self, formation: Epoch) -> bool:
        assert self.active is not None
        return formation.is_complete or not self.active.is_complete

    def _formation(self, live: Sequence[int]) -> Epoch:
        current = self.target if self.active is None else self.active.placement
        caps = [self._caps.get(shard, self.rules.max_slots) for shard in range(self.rules.num_shards)]
        placement = cover(self.target, current, live, caps, self.loads)
        return Epoch(self._generation + 1, tuple(live), placement, self.backend)

    def _advance(self, preparing: _Preparing) -> None:
        formation = preparing.formation
        if preparing.phase == "stage":
            preparing.phase, preparing.waiting = "connect", set(formation.live)
            for shard in formation.live:
                self.orders.connect(shard, formation.generation)
            return
        self._preparing, self._published = None, formation
        self.orders.publish(formation, [shard for shard in formation.live if shard in self._untried])

    def _could_not(self, shard: int, report: Prepared) -> None:
        logger.warning("shard %d cannot %s: %s", shard, report.phase, report.problem)
        self._preparing = None
        if report.lacks_room and self.active is not None:
            # No more than it holds now; `cover` finds others, or leaves experts out.
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
