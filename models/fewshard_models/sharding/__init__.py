"""Which shard of a group holds which expert."""

from fewshard_models.sharding.placement import Placement, contiguous, round_robin

__all__ = ["Placement", "contiguous", "round_robin"]
