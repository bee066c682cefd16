"""The placement value: what it answers, what it refuses, and its files."""

import json

import numpy as np
import pytest

from fewshard_models.errors import PlacementError
from fewshard_models.sharding import Placement, contiguous, round_robin
from fewshard_models.sharding.placement import read_placement, write_placement

TWO_COPIES = Placement(np.array([[[2, 0], [1, 2]], [[0, 1], [2, -1]]], np.int32), num_experts=3)


def placed(slots: object, num_experts: int = 3) -> Placement:
    return Placement(np.array(slots, np.int32), num_experts)


def test_it_answers_both_ways():
    TWO_COPIES.check()
    assert (TWO_COPIES.num_layers, TWO_COPIES.num_shards, TWO_COPIES.slots_per_shard) == (2, 2, 2)
    assert TWO_COPIES.experts_on(0) == ((0, 2), (0, 1))
    assert TWO_COPIES.experts_on(1) == ((1, 2), (2,))
    assert TWO_COPIES.copies().tolist() == [[1, 1, 2], [1, 1, 1]]


def test_it_cannot_be_changed_behind_its_back():
    slots = np.zeros((1, 1, 1), np.int32)
    placement = Placement(slots, 1)
    slots[:] = 7
    placement.check()
    with pytest.raises(ValueError, match="read-only"):
        placement.slots[0, 0, 0] = 1


def test_equal_placements_are_equal():
    assert placed([[[0, 1, 2]]]) == placed([[[0, 1, 2]]])
    assert placed([[[0, 1, 2]]]) != placed([[[0, 2, 1]]])
    assert placed([[[0, 1, 2]]]) != placed([[[0, 1, 2]]], num_experts=4)


@pytest.mark.parametrize(
    ("slots", "message"),
    [
        ([[[0, 1], [1, -1]]], "no shard holds expert 2 .1 missing"),
        ([[[0, 1], [2, 2]]], "layer 0, shard 1 holds expert 2 twice"),
        ([[[0, 1], [2, 3]]], "layer 0, shard 1, slot 1 holds 3"),
        ([[[0, 1], [2, -2]]], "holds -2"),
        ([[0, 1, 2]], "not .1, 3. of 3"),
        ([[[], []]], "not .1, 2, 0. of 3"),
    ],
)
def test_an_unsound_placement_is_refused(slots, message):
    with pytest.raises(PlacementError, match=message):
        placed(slots).check()


def test_survivors_keep_their_slots():
    left = TWO_COPIES.without([0])
    assert left.experts_on(0) == TWO_COPIES.experts_on(1)
    with pytest.raises(PlacementError, match="no shard holds expert 0"):
        left.check()


def test_plain_placements():
    assert contiguous(1, 5, 2, 3).slots.tolist() == [[[0, 1, 2], [3, 4, -1]]]
    assert round_robin(2, 5, 2, 3).slots.tolist() == [[[0, 2, 4], [1, 3, -1]]] * 2


@pytest.mark.parametrize("policy", [contiguous, round_robin])
@pytest.mark.parametrize("shape", [(4, 4, 1), (7, 3, 3), (128, 32, 4), (9, 4, 8), (10, 7, 2)])
def test_plain_placements_are_sound_and_even(policy, shape):
    placement = policy(2, *shape)
    placement.check()
    sizes = (placement.slots != -1).sum(axis=2)
    assert sizes.max() - sizes.min() <= 1
    assert (placement.copies() == 1).all()


@pytest.mark.parametrize("policy", [contiguous, round_robin])
@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((10, 3, 3), "1 slots are missing; give at least 4 slots a shard or 4 shards"),
        ((4, 6, 2), "2 shards would hold none"),
        ((4, 0, 2), "at least 1"),
        ((0, 2, 2), "at least 1"),
    ],
)
def test_what_cannot_fit_is_refused_and_by_how_much(policy, shape, message):
    with pytest.raises(PlacementError, match=message):
        policy(1, *shape)


def test_json_gives_it_back():
    fields = json.loads(json.dumps({"model": "m", **TWO_COPIES.to_json()}))
    assert Placement.from_json(fields) == TWO_COPIES


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"slots": [[[0]]]}, "num_experts"),
        ({"num_experts": True, "slots": [[[0]]]}, "num_experts"),
        ({"num_experts": 2, "slots": [[[0, 1], [0]]]}, "differ in length"),
        ({"num_experts": 1, "slots": [[[0.5]]]}, "whole numbers"),
        ({"num_experts": 1, "slots": [[["0"]]]}, "whole numbers"),
        ({"num_experts": 1, "slots": [[[2**40]]]}, "whole numbers"),
        ({"num_experts": 1}, "whole numbers"),
        ({"num_experts": 2, "slots": [[[0]]]}, "no shard holds expert 1"),
    ],
)
def test_bad_json_is_refused(fields, message):
    with pytest.raises(PlacementError, match=message):
        Placement.from_json(fields)


def test_a_file_belongs_to_one_model(tmp_path):
    file = tmp_path / "placement.json"
    write_placement(file, TWO_COPIES, "mine")
    assert read_placement(file, "mine") == TWO_COPIES
    with pytest.raises(PlacementError, match="a placement for 'mine', not for 'yours'"):
        read_placement(file, "yours")


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"model": "m", "num_experts": 1, "slots": [[[3]]]}'])
def test_a_bad_file_is_named(tmp_path, text):
    file = tmp_path / "placement.json"
    file.write_text(text)
    with pytest.raises(PlacementError, match=str(file)):
        read_placement(file, "m")
    with pytest.raises(PlacementError, match="absent"):
        read_placement(tmp_path / "absent.json", "m")
