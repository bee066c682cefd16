"""Decides when a group changes its placement: only if the predicted gain exceeds the cost."""

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from fewshard_models.sharding import Placement
from fewshard_serve.placement.loads import LoadAverage
from fewshard_serve.placement.local_search import moves_by_layer
from fewshard_serve.placement.planner import balanced, heaviest_loads


@dataclass(frozen=True, slots=True)
class RebalanceSettings:
    """Cost of a change, its expected use, and the required margin.

    half_life_s: the weight of a load halves after this time.
    horizon_s: how long a placement is expected to stay in use.
    seconds_per_token: one expert's computation of one token on its shard.
    seconds_per_move: time that loading one expert's weights costs the group.
    cost_factor: the gain must exceed the cost by this factor; with min_gain the hysteresis.
    min_gain: the gain must also be this share of the heaviest shards' time.
    min_interval_s: the least time between two changes.
    min_observed_s: the least time that the loads must cover.
    """

    half_life_s: float = 300.0
    horizon_s: float = 600.0
    seconds_per_token: float = 1e-6
    seconds_per_move: float = 5e-3
    cost_factor: float = 2.0
    min_gain: float = 0.02
    min_interval_s: float = 60.0
    min_observed_s: float = 30.0


@dataclass(frozen=True, slots=True)
class Decision:
    """The result of `decide`.

    placement: the new placement; None for no change.
    reason: why nothing changes, or what is gained.
    gain_s: seconds of the heaviest shards that are saved over the horizon.
    cost_s: seconds that loading takes.
    num_moves: experts to load.
    """

    placement: Placement | None
    reason: str
    gain_s: float = 0.0
    cost_s: float = 0.0
    num_moves: int = 0


@dataclass(slots=True)
class Rebalancer:
    """Observes the counters of one group and decides. It uses no clock, threads or Ray."""

    settings: RebalanceSettings = field(default_factory=RebalanceSettings)
    nodes: int = 1
    _average: LoadAverage = field(init=False)
    _changed_at_s: float = field(init=False, default=float("-inf"))

    def __post_init__(self) -> None:
        self._average = LoadAverage(self.settings.half_life_s)

    def observe(self, counts: NDArray[np.generic], at_s: float) -> None:
        """Add cumulative tokens [num_layers, num_experts], read at `at_s`."""
        self._average.observe(counts, at_s)

    @property
    def loads(self) -> NDArray[np.float64] | None:
        """The moving average in tokens a second; None while unknown."""
        return self._average.loads

    def decide(self, current: Placement, at_s: float) -> Decision:
        """Return a placement that is worth its moves, or none. Call `changed` once it is in force."""
        waited_s, loads = at_s - self._changed_at_s, self._average.loads
        if waited_s < self.settings.min_interval_s:
            return Decision(None, f"the last change is {waited_s:.0f} s old")
        if loads is None or self._average.seconds < self.settings.min_observed_s:
            return Decision(None, f"loads are known for {self._average.seconds:.0f} s only")
        if not loads.any():
            return Decision(None, "no expert has any load")
        return worth_changing(loads, current, self.settings, self.nodes)

    def changed(self, at_s: float) -> None:
        """Record that the placement changed at `at_s`."""
        self._changed_at_s = at_s


def worth_changing(
    loads: NDArray[np.float64], current: Placement, settings: RebalanceSettings, nodes: int = 1
) -> Decision:
    """Plan near `current` and adopt the layers whose gain exceeds `cost_factor` times their cost.

    `loads`: tokens a second [num_layers, num_experts]. Every step waits in each layer for the heaviest shard,
        so a layer's gain is the decrease of that shard's work over the horizon.
    """
    planned = balanced(loads, current.num_shards, current.slots_per_shard, nodes, current)
    before = heaviest_loads(loads, current.slots)
    less = before - heaviest_loads(loads, planned.slots)
    gains = less * settings.seconds_per_token * settings.horizon_s
    costs = moves_by_layer(current, planned) * settings.seconds_per_move
    taken = gains > costs * settings.cost_factor
    gain_s, cost_s = float(gains[taken].sum()), float(costs[taken].sum())
    num_moves = int(moves_by_layer(current, planned)[taken].sum())
    share = float(less[taken].sum() / before.sum())
    if share < settings.min_gain or not taken.any():
        reason = f"{share:.1%} of the heaviest shards' time could be saved by changes worth their cost"
        return Decision(None, reason, gain_s, cost_s, num_moves)
    slots = np.where(taken[:, None, None], planned.slots, current.slots)
    reason = (
        f"saves {share:.1%} of the heaviest shards' time, {gain_s:.3g} s in {settings.horizon_s:.0f} s, "
        f"for {num_moves} experts to load ({cost_s:.3g} s) in {int(taken.sum())} layers"
    )
    return Decision(Placement(slots, current.num_experts), reason, gain_s, cost_s, num_moves)
