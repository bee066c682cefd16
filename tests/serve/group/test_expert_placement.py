"""The first placement of a group, and what may be asked of a running one."""

import json

import numpy as np
import pytest

from fewshard_models.errors import PlacementError
from fewshard_models.sharding import Placement, contiguous, round_robin
from fewshard_models.sharding.placement import write_placement
from fewshard_models.text import FewshardTextConfig
from fewshard_serve.errors import MalformedRequest
from fewshard_serve.group.expert_placement import describe_change, first_placement, wanted_placement
from fewshard_serve.group.settings import ExpertsSettings

CONFIG = FewshardTextConfig(num_hidden_layers=3, num_experts=8, moe_layers=[0, 2])


def first(model="m", **settings):
    return first_placement(ExpertsSettings(**{"shards": 4, **settings}), CONFIG, model)


@pytest.mark.parametrize("placement", ["balanced", "contiguous", "round_robin"])
@pytest.mark.parametrize(("slots", "expected"), [("auto", 2), (3, 3)])
def test_the_first_placement_holds_every_expert(placement, slots, expected):
    found = first(placement=placement, slots_per_shard=slots)
    found.check()
    assert found.slots.shape == (2, 4, expected)


def test_spare_slots_of_a_balanced_placement_are_used():
    assert (first(slots_per_shard=3).copies() > 1).any()
    assert not (first(slots_per_shard=3, placement="contiguous").copies() > 1).any()


@pytest.mark.parametrize("placement", ["balanced", "contiguous"])
def test_slots_that_cannot_hold_the_experts_say_by_how_much(placement):
    with pytest.raises(PlacementError, match="4 shards x 1 slots: 4 slots are missing"):
        first(placement=placement, slots_per_shard=1)


def test_more_shards_than_experts_are_refused():
    with pytest.raises(PlacementError, match="there are 9 shards and 8 experts a layer"):
        first(shards=9, placement="contiguous")


def test_a_placement_file_is_taken_if_it_is_for_this_model_and_group(tmp_path):
    file = tmp_path / "plan.json"
    write_placement(file, round_robin(2, 8, 4, 3), "m")
    assert first(placement=str(file)) == round_robin(2, 8, 4, 3)
    with pytest.raises(PlacementError, match="a placement for 'm', not for 'other'"):
        first("other", placement=str(file))
    with pytest.raises(PlacementError, match="for 4 shards, this group has 2"):
        first(shards=2, placement=str(file))
    with pytest.raises(PlacementError, match="puts 2 experts of a layer on one shard, which may hold 1"):
        first(placement=str(file), max_slots_per_shard=1)
    with pytest.raises(PlacementError, match="no readable placement file"):
        first(placement=str(tmp_path / "gone.json"))


CURRENT = contiguous(2, 8, 4, 2)


def test_a_placement_is_asked_for_by_name_or_slot_by_slot():
    assert wanted_placement({"placement": "round_robin"}, CURRENT, 8, "m") == round_robin(2, 8, 4, 2)
    body = {"model": "m", **round_robin(2, 8, 4, 3).to_json(), "apply": True}
    assert wanted_placement(json.loads(json.dumps(body)), CURRENT, 8, "m") == round_robin(2, 8, 4, 3)


def holes():
    slots = np.array(CURRENT.slots)
    slots[1, 2, 0] = -1
    return {"model": "m", "num_experts": 8, "slots": slots.tolist()}


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ({}, "for None, not for 'm'"),
        ({"placement": "best"}, "no placement 'best'.*contiguous, round_robin"),
        ({"placement": "balanced"}, "no placement 'balanced'"),
        ({"model": "other", **CURRENT.to_json()}, "for 'other', not for 'm'"),
        ({"model": "m", **contiguous(1, 8, 4, 2).to_json()}, "for 1 layers, this group has 2"),
        ({"model": "m", **contiguous(2, 7, 4, 2).to_json()}, "for 7 experts, this group has 8"),
        ({"model": "m", **contiguous(2, 8, 2, 4).to_json()}, "for 2 shards, this group has 4"),
        (holes(), "no shard holds expert 4"),
        ({"model": "m", "num_experts": 8}, "whole numbers"),
    ],
)
def test_what_cannot_be_placed_is_refused(body, message):
    with pytest.raises(MalformedRequest, match=message):
        wanted_placement(body, CURRENT, 2, "m")


def test_a_change_is_told_in_experts_and_bytes():
    swapped = Placement(np.roll(CURRENT.slots, 1, axis=1), 8)
    assert describe_change(CURRENT, swapped, 100) == {"moves": 16, "bytes": 1600}
    assert describe_change(CURRENT, CURRENT, 100) == {"moves": 0, "bytes": 0}
