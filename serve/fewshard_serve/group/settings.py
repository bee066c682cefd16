"""What a group is made of: as the configuration says it, and as it was found out for one checkpoint."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class ExpertsSettings:
    """What the configuration says of sharding. None: to be found out from the checkpoint.

    `placement`: "balanced", "contiguous", "round_robin" or a placement file; the rest as in `GroupSettings`.
    """

    num_shards: int
    slots_per_shard: int | None = None
    max_slots_per_shard: int | None = None
    placement: str = "balanced"
    strategy: str = "pack"
    rebalance_s: float = 60.0
    allows_degraded: bool = False
    timeout_s: float = 3.0


@dataclass(frozen=True, slots=True)
class GroupSettings:
    """`num_shards` processes serve the checkpoint at `path`, each in `dtype` on `device`.

    `path` is looked up where each of them runs: zoo:<name>, hf:<owner>/<name> or a directory.

    `max_slots_per_shard`: the most experts of a layer that a shard may hold after losses; `timeout_s`: how
    long one exchange may take, and a worker be silent; `address`: where the leader listens; `rebalance_s`:
    how often the placement is looked at again, 0 for never.
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
