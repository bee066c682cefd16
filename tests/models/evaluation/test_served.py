"""What a model says of its held-out set is written into its card, and nothing else of the card changes."""

import shutil
from dataclasses import asdict

import numpy as np
import pytest

from fewshard_models.card import load_card
from fewshard_models.checkpoint import resolve
from fewshard_models.data import data_dir
from fewshard_models.errors import CheckpointError, DataError
from fewshard_models.evaluation.served import served_of, write_served


def test_shares_and_the_distribution_of_the_best_probability():
    logits = np.log(np.array([[0.9, 0.1], [0.3, 0.7], [0.4, 0.6], [0.2, 0.8]], np.float32))
    assert served_of(logits, ["no", "yes"], (0.5, 0.65, 1.0)) == {
        "labels": {"no": 0.25, "yes": 0.75},
        "confidence": {"0.5": 0.0, "0.65": 0.25, "1.0": 1.0},
    }


def test_labels_of_one_name_share_an_entry():
    logits = np.eye(3, dtype=np.float32)[[0, 1, 2, 2]]
    served = served_of(logits, ["crane", "cat", "crane"], (1.0,))
    assert served["labels"] == {"crane": 0.75, "cat": 0.25}


@pytest.mark.data
def test_the_card_keeps_the_rest(tmp_path):
    try:
        data_dir()
    except DataError as error:
        pytest.skip(str(error))
    copy = shutil.copytree(resolve("zoo:sst2-dense"), tmp_path / "model")
    before = load_card(copy)
    served = write_served(copy, (0.5, 0.9), limit=60)
    assert sum(served["labels"].values()) == pytest.approx(1.0, abs=1e-4)
    after = load_card(copy)
    assert after.extra["served"] == served
    same = {key: value for key, value in asdict(after).items() if key != "extra"}
    assert same == {key: value for key, value in asdict(before).items() if key != "extra"}


def test_a_checkpoint_without_a_card_is_an_error(tmp_path):
    with pytest.raises(CheckpointError, match=r"no card\.json"):
        write_served(tmp_path, (0.5,))
