"""Covering lost experts, and how formations travel."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fewshard_models.sharding import Placement, contiguous, round_robin
from fewshard_serve.group.epoch import Epoch, cover, has_same_experts, held_in, spares_for_losses
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


def test_spares_are_what_each_single_loss_would_ask_for():
    """Every expert of a worker has a copy elsewhere, and covering its loss finds all of them there."""
    placement, slots = contiguous(2, 8, 4, 8), [8] * 4
    spares = spares_for_losses(placement, (1, 2, 3), slots, num_spares=100)
    held = held_in(spares, placement)
    assert (held.sum(axis=1) == [[0, 0, 1, 1, 1, 1, 1, 1]] * 2).all()
    for lost in (1, 2, 3):
        live = [shard for shard in ALL if shard != lost]
        loads = np.random.default_rng(lost).integers(0, 100, (2, 8))  # other ones than when they were planned
        covered = cover(placement, placement, live, slots, loads, held)
        for shard in live:
            for layer in range(2):
                more = set(covered.experts_on(shard)[layer]) - set(placement.experts_on(shard)[layer])
                assert sorted(more) in [sorted(block) for block in spares[shard][layer]] or not more


def test_the_hottest_experts_get_the_few_spares():
    placement = contiguous(1, 8, 4, 2)
    loads = np.array([[1, 2, 30, 4, 5, 60, 7, 8]])
    losses, slots = (1, 2, 3), [4] * 4
    wanted = held_in(spares_for_losses(placement, losses, slots, 100, loads), placement)[0]
    chosen = held_in(spares_for_losses(placement, losses, slots, 1, loads), placement)[0]
    assert wanted.sum() == 6
    for all_of_them, one in zip(wanted * loads, chosen, strict=True):
        assert loads[0, one].tolist() == ([all_of_them.max()] if all_of_them.any() else [])
    assert spares_for_losses(placement, losses, slots, 0, loads) == {shard: [[]] for shard in ALL}


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
    formation = Epoch(7, (0, 1, 3), Placement(slots, 8), "nccl", standby=5)
    back = Epoch.from_fields(json.loads(json.dumps(formation.to_fields())))
    assert (back, back.is_complete) == (formation, False)
    assert back.experts() == [((0, 1), (0, 1)), ((2, 3), (2, 3)), ((6, 7), (6, 7))]


@pytest.mark.parametrize(("order", "same"), [([1, 0], True), ([0, -1], False)])
def test_slots_do_not_matter_experts_do(order, same):
    one, other = Placement(np.array([[[0, 1]]]), 2), Placement(np.array([[order]]), 2)
    assert has_same_experts(one, other) is same
