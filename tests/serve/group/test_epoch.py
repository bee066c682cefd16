"""Covering lost experts, and how formations travel."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fewshard_models.sharding import Placement, contiguous, round_robin
from fewshard_serve.group.epoch import Epoch, cover, has_same_experts
from fewshard_serve.placement.local_search import num_moves

ALL = (0, 1, 2, 3)


def test_with_all_shards_live_the_target_is_covered_as_it_is():
    target = round_robin(2, 8, 4, 3)
    assert cover(target, contiguous(2, 8, 4, 3), ALL, [8] * 4) == target


def test_an_expert_that_some_shard_holds_now_stays_there():
    target, current = round_robin(1, 8, 4, 8), contiguous(1, 8, 4, 8)
    covered = cover(target, current, (0, 1, 3), [8] * 4)
    lost = target.experts_on(2)[0]
    assert lost == (2, 6)
    assert 2 in covered.experts_on(1)[0], "contiguous has 2 on shard 1"
    assert 6 in covered.experts_on(3)[0]


def test_the_heaviest_lost_expert_goes_to_the_lightest_shard():
    target = contiguous(1, 8, 4, 8)
    loads = np.array([[50, 50, 1, 1, 90, 10, 30, 30]])
    covered = cover(target, target, (0, 1, 3), [8] * 4, loads)
    assert set(covered.experts_on(1)[0]) == {2, 3, 4}
    assert 5 in covered.experts_on(3)[0]


def test_what_finds_no_slot_stays_nowhere():
    target = contiguous(2, 8, 4, 2)
    covered = cover(target, target, (0, 1, 2), [2, 3, 2, 2])
    assert (covered.copies() == 0).sum() == 2
    assert covered.slots_per_shard == 3
    with_room = cover(target, target, (0, 1, 2), [3, 3, 2, 2])
    assert (with_room.copies() > 0).all()


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_covering_keeps_what_is_live_places_all_and_changes_nothing_twice(data):
    shards, experts, layers = 5, data.draw(st.integers(5, 12)), 2
    slots = np.full((layers, shards, experts), -1)
    for layer in range(layers):
        for expert in range(experts):
            for shard in data.draw(st.sets(st.integers(0, shards - 1), min_size=1, max_size=3)):
                slots[layer, shard, expert] = expert
    target = Placement(slots, experts)
    live = sorted(data.draw(st.sets(st.integers(0, shards - 1), min_size=1)))
    covered = cover(target, target, live, [experts] * shards)
    covered.check()
    for shard in range(shards):
        for now, then in zip(covered.experts_on(shard), target.experts_on(shard), strict=True):
            assert set(now) >= set(then) if shard in live else not now
    assert num_moves(target, covered) == (target.without(set(range(shards)) - set(live)).copies() == 0).sum()
    assert cover(target, covered, live, [experts] * shards) == covered


def test_a_formation_travels_as_json():
    slots = np.array(contiguous(2, 8, 4, 2).slots)
    slots[:, 2] = -1
    formation = Epoch(7, (0, 1, 3), Placement(slots, 8), "nccl")
    back = Epoch.from_fields(json.loads(json.dumps(formation.to_fields())))
    assert (back, back.is_complete) == (formation, False)
    assert back.experts() == [((0, 1), (0, 1)), ((2, 3), (2, 3)), ((6, 7), (6, 7))]


@pytest.mark.parametrize(("order", "same"), [([1, 0], True), ([0, -1], False)])
def test_slots_do_not_matter_experts_do(order, same):
    one, other = Placement(np.array([[[0, 1]]]), 2), Placement(np.array([[order]]), 2)
    assert has_same_experts(one, other) is same
