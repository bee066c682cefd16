"""Settings of a group: as configured, and as resolved for one checkpoint."""

import math
from dataclasses import dataclass
from typing import Annotated, Literal

from annotated_types import Ge, Le

from fewshard_serve.settings import NO_OTHER_KEYS, STRICT, Check, Flag, NonNegative, PositiveInt, WithExponent

PLACEMENTS = ("balanced", "contiguous", "round_robin")
"""Those that are computed; any other is a file."""


def _known_placement(placement: str) -> str:
    if placement not in PLACEMENTS and not placement.endswith(".json"):
        raise ValueError(f"{placement!r} is none of {', '.join(PLACEMENTS)} and a placement file (….json)")
    return placement


@dataclass(frozen=True, slots=True)
class ExpertsSettings:
    """How the experts of one MoE model are spread over several processes or GPUs."""

    __pydantic_config__ = NO_OTHER_KEYS

    shards: PositiveInt
    slots_per_shard: PositiveInt | Literal["auto"] = "auto"
    """Experts of a layer on each shard at first; `auto`: as many as it takes."""
    max_slots_per_shard: PositiveInt | Literal["auto"] = "auto"
    """The most experts of a layer on one shard after losses; `auto`: all of them."""
    placement: Annotated[str, Check(_known_placement)] = "balanced"
    """One of `PLACEMENTS`, or a placement file."""
    strategy: Literal["pack", "spread"] = "pack"
    rebalance_s: NonNegative = 60.0
    exchange_timeout_ms: Annotated[float, STRICT, Ge(100), Le(30_000), WithExponent()] = 3000.0
    degraded: Flag = False
    spare_mib: NonNegative = 32.0
    """Memory that each shard may use for copies of others' experts, which a loss then need not load."""

    def __post_init__(self) -> None:
        least, most = self.slots_per_shard, self.max_slots_per_shard
        if least != "auto" and most != "auto" and most < least:
            raise ValueError(f"max_slots_per_shard ({most}) is below slots_per_shard ({least})")

    @property
    def exchange_timeout_s(self) -> float:
        return self.exchange_timeout_ms / 1000

    def num_slots(self, num_experts: int) -> int:
        """Return how many experts of a layer each shard holds at first."""
        return (
            math.ceil(num_experts / self.shards) if self.slots_per_shard == "auto" else self.slots_per_shard
        )

    def max_slots(self, num_experts: int) -> int:
        """Return how many experts of a layer a shard may hold after losses, at most."""
        return num_experts if self.max_slots_per_shard == "auto" else self.max_slots_per_shard


@dataclass(frozen=True, slots=True)
class GroupSettings:
    """A group of `num_shards` processes, resolved for one checkpoint.

    path: zoo:<name>, hf:<owner>/<name> or a directory; each process resolves it on its own machine.
    max_slots_per_shard: the most experts of a layer that a shard may hold after losses.
    allows_degraded: answer without some experts rather than not at all.
    timeout_s: seconds that one exchange may take, or a worker may be silent.
    address: where the leader listens.
    num_threads: CPU threads of each worker.
    rebalance_s: seconds between two checks of the placement; 0 for none.
    spare_bytes: memory that each shard may use for copies of others' experts.
    """

    path: str
    dtype: str
    device: str
    num_shards: int
    max_slots_per_shard: int
    allows_degraded: bool = False
    timeout_s: float = 3.0
    address: str = "127.0.0.1"
    num_threads: int = 1
    rebalance_s: float = 0.0
    spare_bytes: int = 0
