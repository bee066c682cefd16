"""What a group is made of; drawn from the configuration, or made by a test."""

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class GroupSettings:
    """`num_shards` processes serve the checkpoint at `directory`, each in `dtype` on `device`.

    `slots_per_shard`: experts of a layer that a shard holds when all are there; `max_slots_per_shard`: the
    most it may hold after losses. `timeout_s`: how long one exchange may take, and a worker be silent.
    `address`: where the leader listens. `rebalance_s`: how often placement is looked at again, 0 for never.
    """

    directory: Path
    dtype: str
    device: str
    num_shards: int
    slots_per_shard: int
    max_slots_per_shard: int
    allows_degraded: bool = False
    timeout_s: float = 3.0
    address: str = "127.0.0.1"
    num_threads: int = 1
    rebalance_s: float = 0.0
