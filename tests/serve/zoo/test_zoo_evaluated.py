"""The bundled models as `fewshard evaluate` and their cards tell of them; no server. Needs FEWSHARD_DATA."""

import functools
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from fewshard_core.values import TextInput
from fewshard_models.card import load_card
from fewshard_models.checkpoint import ZOO, resolve
from fewshard_models.classifier.load import load
from fewshard_models.data.sst2 import load_sst2

pytestmark = [pytest.mark.data, pytest.mark.usefixtures("data_dir")]

QUICKLY_TOLD = ["sst2-dense", "sst2-moe", "sst2-narrow", "cifar10-narrow"]
SLOWLY_TOLD = ["cifar10-dense", "cifar10-dst", "cifar10-static"]
"""Evaluating 10,000 images takes a while; one image model is enough for every run."""


@functools.cache
def printed_by_evaluate(*models: str) -> dict[str, list[str]]:
    """The words of each model's line."""
    paths = [f"zoo:{model}" for model in models]
    command = [str(Path(sys.executable).with_name("fewshard")), "evaluate", *paths]
    printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    rows = [line.split() for line in printed.splitlines()[-len(paths) :]]
    assert [row[0] for row in rows] == paths
    return dict(zip(models, rows, strict=True))


@pytest.mark.parametrize(
    "model", [*QUICKLY_TOLD, *(pytest.param(name, marks=pytest.mark.slow) for name in SLOWLY_TOLD)]
)
def test_evaluate_prints_what_the_card_says(model):
    card = load_card(resolve(f"zoo:{model}"))
    measured = printed_by_evaluate(*(QUICKLY_TOLD if model in QUICKLY_TOLD else [model]))[model]
    assert f"{card.accuracy:.5f}" in measured
    assert measured.count(f"{card.accuracy:.5f}") == 2  # measured now, and on the card
    assert str(card.num_examples) in measured


def test_floors_of_the_tiny_tier():
    """What the bundled models promise: accuracy, active MACs, and experts that are all in use."""
    dense, moe, image = (
        load_card(resolve(f"zoo:{name}")) for name in ("sst2-dense", "sst2-moe", "cifar10-dense")
    )
    assert dense.num_examples == moe.num_examples == 872
    assert dense.accuracy >= 0.85
    assert moe.accuracy >= dense.accuracy - 0.01
    assert moe.macs <= 0.6 * dense.macs
    assert image.num_examples == 10_000
    assert image.accuracy >= 0.91
    shares = expert_shares(load_sst2("dev")[0])
    assert shares.shape[1] >= 4
    assert shares.min() >= 0.02


def expert_shares(texts: list[str]) -> np.ndarray:
    """The share of the dev set's tokens each expert of `sst2-moe` takes, [num_layers, num_experts]."""
    model = load("zoo:sst2-moe", "cpu", "fp32")
    model.run(model.prepare([TextInput(text) for text in texts]))
    counts = model.expert_counts()
    return counts.tokens / counts.tokens.sum(axis=1, keepdims=True)


def test_bundled_zoo_is_small():
    assert sum(file.stat().st_size for file in ZOO.rglob("*") if file.is_file()) < 32 * 2**20
