"""Made-up results for the table's tests: the fixture `result` makes one."""

import numpy as np
import pytest

from fewshard_models.evaluation.costs import Cost
from fewshard_models.evaluation.result import Predicted, Result, Share, Timings
from fewshard_models.evaluation.timing import BatchTime

NAMES = ("negative", "positive")
MACHINE = {"date": "2026-01-01 00:00 UTC", "commit": "abc", "cpu": "made up", "torch": "2"}


def predicted(labels, wrong) -> Predicted:
    """Right but for the rows in `wrong`."""
    labels = np.asarray(labels)
    predictions = labels.copy()
    predictions[list(wrong)] = 1 - predictions[list(wrong)]
    return Predicted("SST-2 dev", NAMES, predictions, labels)


def make_result(model, seed=0, wrong=(), macs=100, ms=10.0, dense_ms=None, num_items=100, **fields) -> Result:
    labels = np.arange(num_items) % 2
    times = tuple(
        BatchTime(batch, 20, ms * batch, 2 * ms * batch, dense_ms and dense_ms * batch) for batch in (1, 64)
    )
    usual = {
        "tier": "small",
        "weights": f"{model}-{seed}",
        "dtype": "float32",
        "card": {"recipe": f"small/{model}", "seed": seed},
        "cost": Cost(1000, 500, 1000, macs, macs, "25 tokens"),
        "machine": MACHINE,
        "held_out": predicted(labels, wrong),
        "slices": {"negation": Share(10, 0.8)},
        "ood": {"yelp": Share(10, 0.7), "all": Share(20, 0.75)},
        "corruptions": {"clean": Share(50, 0.9), "typos 1": Share(50, 0.8), "typos 2": Share(50, 0.6)},
        "peak_bytes": 2**20,
        "timings": Timings(times, (model,), None if dense_ms is None else "dense", MACHINE),
    }
    return Result(model=model, seed=seed, **{**usual, **fields})


@pytest.fixture
def result():
    return make_result
