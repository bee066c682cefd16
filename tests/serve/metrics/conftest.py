"""A model as a scrape sees it."""

import pytest

from fewshard_core.values import ModelInfo
from fewshard_serve.metrics import ModelSource


@pytest.fixture
def model_source():
    def make(name, labels=("no", "yes"), card=None, **reads):
        info = ModelInfo(
            name, "text", "dense", labels, "single_label_classification", "a", "fp32", "cpu", 128,
            card=card or {},
        )  # fmt: skip
        return ModelSource(info, lambda: 0, lambda: 0, lambda: 0, **reads)

    return make
