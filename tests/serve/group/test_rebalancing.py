"""Rebalancing: a group under skewed load moves its experts, and is left alone while shards are missing."""

import threading
from dataclasses import dataclass, field

import numpy as np
import pytest

from fewshard_models.sharding import Placement, contiguous
from fewshard_serve.group.expert_placement import Rebalancing
from fewshard_serve.group.view import GroupStatus
from fewshard_serve.placement.planner import heaviest_loads
from fewshard_serve.placement.policy import Rebalancer, RebalanceSettings


@dataclass
class Group:
    placement: Placement = field(default_factory=lambda: contiguous(2, 8, 4, 3))
    counts: np.ndarray = field(default_factory=lambda: np.zeros((2, 8), np.int64))
    size: int = 4
    problem: str = ""
    obeys: bool = True
    placed: int = 0

    def status(self):
        return GroupStatus(4, self.size, 1, 0, 0, False, self.problem, False, self.placement)

    def place(self, placement, timeout_s):
        self.placed += 1
        if self.obeys:
            self.placement = placement
        return self.obeys

    def rebalancing(self):
        rebalancer = Rebalancer(RebalanceSettings(min_interval_s=10, min_observed_s=5))
        return Rebalancing(rebalancer, lambda: self.counts, self.status, self.place)


HOT = np.array([[8000, 8000, 1000, 1000, 1000, 1000, 1000, 1000]] * 2)


def test_skewed_loads_have_experts_moved_once():
    group = Group()
    rebalancing = group.rebalancing()
    before = heaviest_loads(HOT.astype(float), group.placement.slots)
    moved = []
    for second in range(0, 60, 10):
        group.counts = group.counts + 10 * HOT
        moved.append(rebalancing.look(float(second)))
    assert moved == [False, True, False, False, False, False]
    assert (heaviest_loads(HOT.astype(float), group.placement.slots) < 0.7 * before).all()
    group.placement.check()


@pytest.mark.parametrize("trouble", [{"size": 3}, {"problem": "shard 2 lost"}])
def test_a_group_that_lacks_shards_is_left_alone(trouble):
    group = Group(**trouble)
    rebalancing = group.rebalancing()
    for second in (0.0, 10.0, 20.0):
        group.counts = group.counts + 10 * HOT
        assert not rebalancing.look(second)
    assert group.placed == 0


def test_what_was_not_put_in_force_is_tried_again():
    group = Group(obeys=False)
    rebalancing = group.rebalancing()
    for second in (0.0, 10.0, 20.0):
        group.counts = group.counts + 10 * HOT
        assert not rebalancing.look(second)
    assert group.placed == 2


def test_a_failing_planner_ends_nothing(caplog):
    group = Group()
    looked = threading.Semaphore(0)

    def fail():
        looked.release()
        raise ValueError("no loads")

    rebalancing = group.rebalancing()
    rebalancing.loads = fail
    rebalancing.start(0.01)
    assert looked.acquire(timeout=5)
    assert looked.acquire(timeout=5)
    rebalancing.stop()
    assert "rebalancing failed" in caplog.text


def test_a_running_group_is_rebalanced_under_load(open_group, moe_checkpoint, kit):
    """Shard 1 holds what the items choose most; after a while its experts have copies elsewhere."""
    directory = moe_checkpoint()
    items = kit.random_items(30)
    with_slack = {"placement": contiguous(2, 8, 2, 8), "rebalance_s": 0.2}
    group = open_group(directory, 2, **with_slack)
    expected = kit.whole_logits(directory, items)
    before = group.status.placement
    kit.wait_until(
        lambda: np.abs(group.run(items).logits - expected).max() < 1e-4 and group.status.placement != before
    )
    assert np.abs(group.run(items).logits - expected).max() < 1e-4
    assert group.status.num_moves > 0
