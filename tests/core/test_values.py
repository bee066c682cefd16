"""Sums and differences of routing counts."""

import numpy as np
import pytest

from fewshard_core.values import ExpertCounts, label_order


def counts(tokens: list[list[int]], shard_tokens: list[list[int]] | None = None) -> ExpertCounts:
    received = np.array(tokens, np.int64)
    return ExpertCounts(
        tokens=received,
        probability=received / 4,
        entropy=received.sum(axis=1) / 8,
        rows=received.sum(axis=1) // 2,
        top_k=2,
        shard_tokens=None if shard_tokens is None else np.array(shard_tokens, np.int64),
    )


def as_lists(found: ExpertCounts) -> list[object]:
    arrays = (found.tokens, found.probability, found.entropy, found.rows, found.by_shard)
    return [found.top_k, *(array.tolist() for array in arrays)]


def test_every_field_is_added_and_subtracted() -> None:
    first, second = (
        counts([[4, 2], [0, 6]], [[4, 2, 0], [3, 0, 3]]),
        counts([[2, 2], [4, 0]], [[0, 1, 3], [2, 2, 0]]),
    )
    together = counts([[6, 4], [4, 6]], [[4, 3, 3], [5, 2, 3]])
    assert as_lists(first + second) == as_lists(together)
    assert as_lists(together - second) == as_lists(first)
    assert first.tokens.tolist() == [[4, 2], [0, 6]], "the summands stay as they are"


def test_what_one_shard_multiplies_is_known_without_being_kept() -> None:
    total = counts([[4, 2]]) + counts([[2, 0]])
    assert total.shard_tokens is None
    assert total.by_shard.tolist() == [[8]]


@pytest.mark.parametrize("is_first_kept", [True, False])
def test_a_reading_without_shards_counts_as_one_shards(is_first_kept: bool) -> None:
    kept, implied = counts([[4, 2]], [[6]]), counts([[2, 0]])
    total = kept + implied if is_first_kept else implied + kept
    assert total.by_shard.tolist() == [[8]]


@pytest.mark.parametrize(
    ("labels", "wanted", "order"),
    [
        (("a", "b"), ("b", "a"), [1, 0]),
        (("a", "b"), ("a", "c"), None),
        (("a", "b"), ("a",), None),
        (("crane", "cat", "crane"), ("crane", "cat", "crane"), [0, 1, 2]),
        (("crane", "cat", "crane"), ("crane", "crane", "cat"), None),
        (("crane", "cat", "crane"), ("cat", "cat", "crane"), None),
    ],
)
def test_outputs_are_matched_by_name_and_two_of_one_name_by_place_alone(labels, wanted, order):
    assert label_order(labels, wanted) == order
