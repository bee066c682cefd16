"""Replicas by items in flight."""

from types import SimpleNamespace

import pytest
from ray.serve.config import AutoscalingConfig

from fewshard_serve.config import ReplicasConfig
from fewshard_serve.rayserve.autoscaling import ITEMS, ItemsPolicy, autoscaling


@pytest.mark.parametrize(
    ("items", "wanted"), [([0.0], 0.0), ([64.0], 1.0), ([96.0, 32.0], 2.0), ([300.0, 20.0], 5.0)]
)
def test_enough_replicas_for_the_items_of_all(items, wanted):
    reported = {ITEMS: dict(enumerate(items))}
    context = SimpleNamespace(aggregated_metrics=reported, target_num_replicas=3)
    assert ItemsPolicy(64)(context)[0] == wanted


@pytest.mark.parametrize("reported", [None, {}, {ITEMS: {}}])
def test_nothing_changes_before_the_first_report(reported):
    context = SimpleNamespace(aggregated_metrics=reported, target_num_replicas=3)
    assert ItemsPolicy(64)(context)[0] == 3


def test_serve_takes_the_settings():
    replicas = ReplicasConfig(min=1, max=4, target_items=8, scale_up_s=2, scale_down_s=30)
    config = AutoscalingConfig(**autoscaling(replicas))
    assert (config.min_replicas, config.max_replicas) == (1, 4)
    assert (config.upscale_delay_s, config.downscale_delay_s) == (2, 30)
    policy = config.policy.get_policy()(**config.policy.policy_kwargs)
    context = SimpleNamespace(aggregated_metrics={ITEMS: {"r": 24.0}}, target_num_replicas=1)
    assert policy(context)[0] == 3
