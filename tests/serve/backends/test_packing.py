"""What travels to the process of the models arrives as it was sent, in the same order."""

import pickle

import numpy as np
import pytest

from fewshard_core.values import ExpertCounts, Item, ModelOutput, TokenIds, TokenRouting
from fewshard_serve.backends.packing import (
    pack_counts,
    pack_items,
    pack_output,
    unpack_counts,
    unpack_items,
    unpack_output,
)


def sent(packed):
    return pickle.loads(pickle.dumps(packed, pickle.HIGHEST_PROTOCOL))


def plain(items):
    return [(item.features, item.num_tokens, item.routing) for item in items]


@pytest.mark.parametrize(
    "items",
    [
        [Item(TokenIds([101, 30521, 7], None), 3), Item(TokenIds([2**31 - 1], None), 1)],
        [Item(TokenIds([1, 2, 3], [0, 1, 300]), 3), Item(TokenIds([], []), 0), Item(TokenIds([4], [1]), 1)],
        [Item(TokenIds([1, 2], [0, 1]), 2), Item(TokenIds([3], None), 1)],
        [Item(TokenIds([1], None), 9), Item(TokenIds([2], None), 1, TokenRouting(["a"]))],
        [Item("a text", 6), Item(TokenIds([2], None), 1)],
        [Item({"count": 3}, 0), Item({}, 0)],
        [],
    ],
    ids=["texts", "pairs", "mixed pairs", "routing", "mixed kinds", "no arrays", "nothing"],
)
def test_items_arrive_as_they_were_sent(items):
    assert plain(unpack_items(sent(pack_items(items)))) == plain(items)


@pytest.mark.parametrize("shapes", [[(3, 4), (3, 4)], [(3, 4), (4, 3)]], ids=["equal", "unequal"])
@pytest.mark.parametrize("kind", [np.uint8, np.float32])
def test_images_arrive_as_they_were_sent(shapes, kind):
    drawn = np.random.default_rng(0)
    pixels = [drawn.integers(0, 255, shape).astype(kind) for shape in shapes]
    items = [Item({"pixels": each, "mask": np.ones(2)}, 0) for each in pixels]
    for item, got in zip(items, unpack_items(sent(pack_items(items))), strict=True):
        assert got.features.keys() == item.features.keys()
        for name, array in item.features.items():
            assert got.features[name].dtype == array.dtype
            np.testing.assert_array_equal(got.features[name], array)


def test_images_of_one_shape_and_two_types_keep_their_types():
    items = [Item({"pixels": np.ones(2, kind)}, 0) for kind in (np.uint8, np.float32)]
    got = unpack_items(sent(pack_items(items)))
    assert [item.features["pixels"].dtype for item in got] == [np.uint8, np.float32]


def test_outputs_and_counts_arrive_as_they_were_sent():
    output = unpack_output(sent(pack_output(ModelOutput(np.ones((2, 3), np.float32), 4, True, 0.5))))
    assert output.logits.tolist() == [[1, 1, 1]] * 2
    assert (output.num_padding_tokens, output.is_degraded, output.exchange_s) == (4, True, 0.5)
    ones = np.ones((1, 2), np.int64)
    counts = ExpertCounts(ones, ones / 2, np.ones(1), np.full(1, 2), 2, np.ones((1, 3), np.int64))
    got = unpack_counts(sent(pack_counts(counts)))
    assert got.tokens.tolist() == [[1, 1]]
    assert (got.rows.tolist(), got.top_k, got.by_shard.tolist()) == ([2], 2, [[1, 1, 1]])
    assert unpack_counts(pack_counts(None)) is None
