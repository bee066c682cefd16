"""The checkpoint of random weights: made, labelled by transformers in fp32, and run by our own code."""

from collections import Counter
from pathlib import Path

import pytest

from fewshard_loadtest.errors import BenchmarkError
from fewshard_loadtest.payloads import own_texts
from fewshard_loadtest.peers import checkpoint


@pytest.mark.slow
def test_a_made_up_checkpoint_has_two_labels_and_runs_here(tmp_path: Path) -> None:
    texts = [*own_texts().items]
    checkpoint.make(tmp_path / "model", None, texts)
    expected = checkpoint.expected_labels(tmp_path / "model", texts)
    assert [one.text for one in expected] == texts
    assert min(Counter(one.label for one in expected).values()) >= len(texts) // 3
    costs = checkpoint.model_cost(tmp_path / "model", "fp32", 0.5, ["1", "16"], texts)
    assert set(costs) == {1, 16}
    assert 0 < costs[16] < costs[1]


def test_a_checkpoint_that_cannot_be_loaded_is_told(tmp_path: Path) -> None:
    with pytest.raises(BenchmarkError, match=r"checkpoint\.py labels"):
        checkpoint.expected_labels(tmp_path, ["a text"])
