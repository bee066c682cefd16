"""Slices of a test set: every row in one length, negation found as SST-2 writes it."""

import numpy as np
import pytest

from fewshard_models.evaluation.slices import class_slices, has_negation, text_slices


@pytest.mark.parametrize(
    "text", ["it does n't work", "I can't", "Not bad", "no plot", "cannot", "i don’t", "without a heart"]
)
def test_negation_is_found(text):
    assert has_negation(text)


@pytest.mark.parametrize("text", ["I want to print it", "notable", "knot", "a novel", "the front nt"])
def test_words_that_only_look_like_it_are_not(text):
    assert not has_negation(text)


def test_lengths_part_the_rows():
    texts = ["w " * 10, "w " * 11, "w " * 20, "no " * 21]
    found = text_slices(texts)
    lengths = [rows for name, rows in found.items() if name.startswith("length")]
    assert [rows.tolist() for rows in lengths] == [[0], [1, 2], [3]]
    assert found["negation"].tolist() == [3]
    assert found["no negation"].tolist() == [0, 1, 2]


def test_empty_slices_are_left_out_and_classes_have_names():
    assert "negation" not in text_slices(["fine"])
    found = class_slices(np.array([1, 0, 1]), ("bad", "good"))
    assert {name: rows.tolist() for name, rows in found.items()} == {"class bad": [1], "class good": [0, 2]}
