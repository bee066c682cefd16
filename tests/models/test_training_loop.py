"""The training loop: it learns, resumes to the bit after an interruption, and refuses other settings."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from fewshard_models.errors import RecipeError
from fewshard_models.recipes.training_curve import CURVE_FILE, load_curve
from fewshard_models.recipes.training_loop import FitSettings, fit

SETTINGS = FitSettings(epochs=4, learning_rate=0.05, optimizer="sgd", ema_decay=0.5, save_every_s=0.0)


class Batches:
    """y = x summed, six batches an epoch; stops the run after `stop_after` batches, as a kill would."""

    def __init__(self, stop_after: int | None = None):
        self.left = stop_after

    def steps_per_epoch(self) -> int:
        return 6

    def epoch(self, number):
        for step in range(6):
            if self.left is not None:
                if self.left == 0:
                    raise KeyboardInterrupt
                self.left -= 1
            x = np.random.default_rng((number, step)).normal(size=(16, 4)).astype(np.float32)
            yield torch.from_numpy(x), torch.from_numpy(x.sum(axis=1))


def make_model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 16), nn.Dropout(0.1), nn.Linear(16, 1))


def loss_of(model: nn.Module, batch) -> torch.Tensor:
    return nn.functional.mse_loss(model(batch[0]).squeeze(1), batch[1])


def weights(model: nn.Module) -> torch.Tensor:
    return torch.cat([parameter.flatten() for parameter in model.parameters()])


def test_loss_falls(tmp_path: Path):
    batch = next(iter(Batches().epoch(99)))
    before = loss_of(make_model().eval(), batch)
    after = loss_of(fit(make_model(), Batches(), loss_of, SETTINGS, tmp_path), batch)
    assert after < 0.5 * before


@pytest.mark.parametrize("stop_after", [1, 6, 11])
def test_interrupted_run_ends_as_the_uninterrupted_one(tmp_path: Path, stop_after):
    expected = fit(make_model(), Batches(), loss_of, SETTINGS, tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        fit(make_model(), Batches(stop_after), loss_of, SETTINGS, tmp_path / "cut")
    torch.manual_seed(123)  # what the next process happens to start with must not matter
    resumed = fit(make_model(), Batches(), loss_of, SETTINGS, tmp_path / "cut")
    assert torch.equal(weights(resumed), weights(expected))


def test_other_settings_are_refused_and_nothing_is_lost(tmp_path: Path):
    fit(make_model(), Batches(), loss_of, SETTINGS, tmp_path)
    before = (tmp_path / "state.pt").read_bytes()
    with pytest.raises(RecipeError, match="made with other settings"):
        fit(make_model(), Batches(), loss_of, dataclasses.replace(SETTINGS, learning_rate=0.1), tmp_path)
    assert (tmp_path / "state.pt").read_bytes() == before


def test_diverging_loss_is_said(tmp_path: Path):
    with pytest.raises(RecipeError, match="lower the learning rate"):
        fit(make_model(), Batches(), lambda m, b: loss_of(m, b) * float("nan"), SETTINGS, tmp_path)


def test_the_curve_of_a_resumed_run_has_each_epoch_once(tmp_path: Path):
    settings = dataclasses.replace(SETTINGS, epochs=8)
    with pytest.raises(KeyboardInterrupt):
        fit(make_model(), Batches(23), loss_of, settings, tmp_path, accuracy_of=lambda _: 0.5)
    asked: list[bool] = []

    def accuracy_of(model: nn.Module) -> float:
        asked.append(model.training)
        return 0.5

    fit(make_model(), Batches(), loss_of, settings, tmp_path, accuracy_of=accuracy_of)
    lines = load_curve(tmp_path / CURVE_FILE)
    assert [line["epoch"] for line in lines if "accuracy" in line] == list(range(1, 9))
    assert [line["step"] for line in lines] == sorted({line["step"] for line in lines})
    assert asked == [False] * 5


def test_asking_for_accuracy_changes_no_weight(tmp_path: Path):
    plain = fit(make_model(), Batches(), loss_of, SETTINGS, tmp_path / "plain")
    asked = fit(make_model(), Batches(), loss_of, SETTINGS, tmp_path / "asked", accuracy_of=lambda _: 0.5)
    assert torch.equal(weights(plain), weights(asked))
