"""Expert sharding: the assignment of experts to the shards of a group."""

from fewshard_models.sharding.placement import Placement, contiguous, round_robin

__all__ = ["Placement", "contiguous", "round_robin"]
