"""Simulates a deployment in discrete steps, to compare policies: loads drift, shards die and return.

`fewshard plan --simulate` calls it. No server runs: a batch's time is a stated sum, so policies can be
compared at any size. docs/scale.md says what the model leaves out.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from fewshard_models.errors import PlacementError
from fewshard_models.sharding import Placement, contiguous, round_robin
from fewshard_models.sharding.placement import EMPTY
from fewshard_serve.placement.local_search import num_moves
from fewshard_serve.placement.planner import balanced, completed, heaviest_loads
from fewshard_serve.placement.policy import Rebalancer, RebalanceSettings

Loads = NDArray[np.float64]
Policy = Literal["contiguous", "round_robin", "balanced", "rebalanced"]
POLICIES: tuple[Policy, ...] = ("contiguous", "round_robin", "balanced", "rebalanced")


@dataclass(frozen=True, slots=True)
class Deployment:
    """One group, and the times of its model.

    batch_tokens: tokens of a batch over all shards.
    rest_s: time of a batch outside experts, on all shards; with fewer shards it grows in proportion.
    collectives_s: time of a batch's collectives.
    offered_tokens_per_s: offered load; None for as much as can be served.
    mtbf_s: mean time between deaths of one shard; None: never.
    reform_s: the group stands still this long after a death, and again when the replacement joins.
    repair_s: time until the replacement joins.
    rebalance: its seconds_per_token is the time of an expert row, its seconds_per_move that of loading an
        expert.
    """

    num_shards: int = 16
    slots_per_shard: int = 6
    nodes: int = 1
    batch_tokens: int = 16384
    top_k: int = 2
    rest_s: float = 5e-3
    collectives_s: float = 5e-4
    offered_tokens_per_s: float | None = None
    step_s: float = 10.0
    mtbf_s: float | None = None
    reform_s: float = 5.0
    repair_s: float = 60.0
    rebalance: RebalanceSettings = field(default_factory=RebalanceSettings)


@dataclass(frozen=True, slots=True)
class Outcome:
    """The result of one simulation.

    imbalance: the heaviest shard's load over the mean, averaged over layers and time.
    lost_s: time in which nothing was served.
    by_loading_s: the part of lost_s for loading weights; the rest is re-forming, or too few shards.
    """

    policy: Policy
    duration_s: float
    served_tokens: float
    offered_tokens: float | None
    imbalance: float
    num_moves: int
    num_rebalances: int
    num_failures: int
    lost_s: float
    by_loading_s: float

    @property
    def tokens_per_s(self) -> float:
        return self.served_tokens / self.duration_s


def simulate(
    deployment: Deployment, policy: Policy, trace: Iterable[Loads], seed: int, deaths: Iterable[int] = ()
) -> Outcome:
    """Replay `trace`, loads [num_layers, num_experts] for each step, in any unit.

    `deaths`: steps in which a shard dies, in addition to those from mtbf_s. Equal arguments give equal
        outcomes, and every policy meets the same deaths.
    """
    run = _Run(deployment, policy, np.random.default_rng(seed), frozenset(deaths))
    for step, loads in enumerate(trace):
        run.step(step, loads / loads.sum(axis=1, keepdims=True))
    return run.outcome()


class _Run:
    """The state of one policy during the trace."""

    def __init__(
        self, deployment: Deployment, policy: Policy, random: np.random.Generator, deaths: frozenset[int]
    ) -> None:
        self.deployment, self.policy, self.random, self.deaths = deployment, policy, random, deaths
        self.watch = Rebalancer(deployment.rebalance, deployment.nodes)
        self.placement: Placement | None = None
        self.alive = list(range(deployment.num_shards))
        self.returning: list[tuple[float, int]] = []
        self.down_s = self.lost_s = self.loading_s = 0.0
        self.moves = self.rebalances = self.failures = self.steps = 0
        self.served = self.imbalances = self.up_steps = 0.0
        self.counts: Loads = np.zeros((0, 0))

    def step(self, step: int, loads: Loads) -> None:
        at_s, settings = step * self.deployment.step_s, self.deployment
        if self.placement is None:
            self.placement, self.counts = self._first(loads), np.zeros_like(loads)
        self.watch.observe(self.counts, at_s)
        self._deaths(step, loads)
        self._returns(at_s, loads)
        if self.policy == "rebalanced":
            self._rebalance(at_s)
        self._serve(loads, settings.step_s)
        self.steps += 1

    def _first(self, loads: Loads) -> Placement:
        """Return the policy's first placement, which is in force before time starts."""
        settings = self.deployment
        sizes = (settings.num_shards, settings.slots_per_shard)
        num_layers, num_experts = loads.shape
        if self.policy == "contiguous":
            return contiguous(num_layers, num_experts, *sizes)
        if self.policy == "round_robin":
            return round_robin(num_layers, num_experts, *sizes)
        return balanced(loads, *sizes, settings.nodes)

    def _deaths(self, step: int, loads: Loads) -> None:
        """Let each live shard die with its probability. Survivors load what only the dead held."""
        settings = self.deployment
        # Draw equally many numbers in every step, so that all policies meet the same deaths.
        draws = self.random.random(settings.num_shards)
        chance = 0.0 if settings.mtbf_s is None else -np.expm1(-settings.step_s / settings.mtbf_s)
        dying = {shard for shard in self.alive if draws[shard] < chance}
        dying |= set(self.alive[:1]) if step in self.deaths else set()
        if not dying or self.placement is None:
            return
        self.failures += len(dying)
        self.down_s += settings.reform_s
        self.returning += [(step * settings.step_s + settings.repair_s, shard) for shard in sorted(dying)]
        held = self.placement.without([row for row, shard in enumerate(self.alive) if shard in dying])
        self.alive = [shard for shard in self.alive if shard not in dying]
        self._change(held, loads, complete=True)

    def _returns(self, at_s: float, loads: Loads) -> None:
        """Let replacements join empty. Fixed placements are restored, others are planned again."""
        back = {shard for when, shard in self.returning if when <= at_s}
        if not back or self.placement is None:
            return
        self.returning = [(when, shard) for when, shard in self.returning if when > at_s]
        self.down_s += self.deployment.reform_s
        before, self.alive = self.alive, sorted({*self.alive, *back})
        slots = np.full((len(loads), len(self.alive), self.deployment.slots_per_shard), EMPTY, np.int32)
        slots[:, [self.alive.index(shard) for shard in before]] = self.placement.slots
        self._change(Placement(slots, self.placement.num_experts), loads, complete=False)

    def _change(self, held: Placement, loads: Loads, complete: bool) -> None:
        """Change from the held placement to the next one, if the present shards can hold it."""
        try:
            known = loads if self.watch.loads is None or not self.watch.loads.any() else self.watch.loads
            new = completed(known, held.slots_per_shard, held) if complete else self._again(held, known)
        except PlacementError:
            self.placement = held
            return
        self._load(num_moves(held, new))
        self.placement = new

    def _again(self, held: Placement, loads: Loads) -> Placement:
        whole = held.num_shards == self.deployment.num_shards
        if self.policy in ("contiguous", "round_robin"):
            return self._first(loads) if whole else completed(loads, held.slots_per_shard, held)
        nodes = self._nodes(held.num_shards)
        return balanced(loads, held.num_shards, held.slots_per_shard, nodes, held)

    def _nodes(self, num_shards: int) -> int:
        """Return 1 after a loss: nodes that have lost a shard no longer divide evenly."""
        return self.deployment.nodes if num_shards == self.deployment.num_shards else 1

    def _rebalance(self, at_s: float) -> None:
        assert self.placement is not None
        if (self.placement.copies() == 0).any():
            return
        self.watch.nodes = self._nodes(self.placement.num_shards)
        decision = self.watch.decide(self.placement, at_s)
        if decision.placement is not None:
            self.placement = decision.placement
            self.rebalances += 1
            self.watch.changed(at_s)
            self._load(decision.num_moves)

    def _load(self, moves: int) -> None:
        self.moves += moves
        taken_s = moves * self.deployment.rebalance.seconds_per_move
        self.down_s += taken_s
        self.loading_s += taken_s

    def _serve(self, loads: Loads, step_s: float) -> None:
        """Serve for the rest of the step, once the group is up again."""
        assert self.placement is not None
        if (self.placement.copies() == 0).any():
            self.lost_s += step_s
            return
        lost_s = min(self.down_s, step_s)
        self.down_s -= lost_s
        self.lost_s += lost_s
        heaviest = heaviest_loads(loads, self.placement.slots)
        tokens = self._rate(heaviest, self.placement.num_shards) * (step_s - lost_s)
        offered = self.deployment.offered_tokens_per_s
        tokens = tokens if offered is None else min(tokens, offered * step_s)
        self.served += tokens
        self.counts = self.counts + loads * tokens * self.deployment.top_k
        self.imbalances += float(heaviest.mean()) * self.placement.num_shards
        self.up_steps += 1

    def _rate(self, heaviest: Loads, num_shards: int) -> float:
        """Return tokens a second: the batch over its time. Each layer waits for its heaviest shard."""
        settings = self.deployment
        rows = settings.batch_tokens * settings.top_k
        experts_s = float(heaviest.sum()) * rows * settings.rebalance.seconds_per_token
        rest_s = settings.rest_s * settings.num_shards / num_shards
        return settings.batch_tokens / (rest_s + settings.collectives_s + experts_s)

    def outcome(self) -> Outcome:
        settings = self.deployment
        duration_s = self.steps * settings.step_s
        offered = settings.offered_tokens_per_s
        return Outcome(
            policy=self.policy,
            duration_s=duration_s,
            served_tokens=self.served,
            offered_tokens=None if offered is None else offered * duration_s,
            imbalance=self.imbalances / max(self.up_steps, 1),
            num_moves=self.moves,
            num_rebalances=self.rebalances,
            num_failures=self.failures,
            lost_s=self.lost_s,
            by_loading_s=self.loading_s,
        )
