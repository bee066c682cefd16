"""RigL keeps its density and moves its masks, resumes to the bit, lets channels die; the cut network is the
masked one."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from fewshard_models.counting import count_macs
from fewshard_models.errors import RecipeError
from fewshard_models.image import FewshardImageConfig, FewshardImageForImageClassification
from fewshard_models.recipes.training_loop import FitSettings, fit
from fewshard_models.sparsify.channels import cut, living_channels
from fewshard_models.sparsify.rigl import Rigl, RiglSettings, moved_mask

STEPS = 24
FIT = FitSettings(epochs=2, learning_rate=0.05, optimizer="sgd", ema_decay=0.5, save_every_s=0.0)
SPARSE = RiglSettings(density=0.3, update_every=2)
DYING = RiglSettings(density=0.3, update_every=2, macs_share=0.4, round_to=4)


class Batches:
    def __init__(self, stop_after: int | None = None):
        self.left = stop_after

    def steps_per_epoch(self) -> int:
        return STEPS // 2

    def epoch(self, number):
        for step in range(STEPS // 2):
            if self.left is not None:
                if self.left == 0:
                    raise KeyboardInterrupt
                self.left -= 1
            rng = np.random.default_rng((number, step))
            labels = rng.integers(0, 4, 16)
            images = rng.normal(size=(16, 3, 16, 16)) + labels[:, None, None, None]
            yield torch.from_numpy(images.astype(np.float32)), torch.from_numpy(labels)


def make_model() -> FewshardImageForImageClassification:
    torch.manual_seed(0)
    config = FewshardImageConfig(
        image_size=16, num_labels=4, stem_channels=8, stage_channels=[16, 24], block_channels=[12, 16]
    )
    model = FewshardImageForImageClassification(config)
    model.stem.requires_grad_(False)
    return model


def loss_of(model, batch) -> torch.Tensor:
    return model(pixel_values=batch[0], labels=batch[1]).loss


class Watched(Rigl):
    """Notes after each step how many weights are kept and how many moved."""

    def __init__(self, *args):
        super().__init__(*args)
        self.seen: list[tuple[int, int]] = []

    def before_update(self, step, optimizer):
        before = {name: self.masks[name].clone() for name in self.masks}
        super().before_update(step, optimizer)
        moved = sum(int((self.masks[name] & ~mask).sum()) for name, mask in before.items())
        self.seen.append((self.masks.num_kept, moved))


@pytest.mark.parametrize("settings", [SPARSE, RiglSettings(0.2, "uniform", update_every=2), DYING])
def test_density_is_kept_at_every_update_and_masks_move(tmp_path: Path, settings):
    model = make_model()
    hook = Watched(model, settings, STEPS)
    fit(model, Batches(), loss_of, FIT, tmp_path, hook)
    assert all(abs(kept - settings.density * hook.masks.num_weights) <= 1 for kept, _ in hook.seen)
    moved = [moved for _, moved in hook.seen]
    due = [step for step in range(STEPS) if hook.is_due(step)]
    assert due == list(range(2, 18, 2))
    assert all((moved[step] > 0) == (step in due) for step in range(STEPS))
    for name, weight in hook.weights.items():
        assert weight.detach()[~hook.masks[name]].eq(0).all()


@pytest.mark.parametrize("stop_after", [1, 5, 12, 17])
def test_interrupted_run_ends_as_the_uninterrupted_one(tmp_path: Path, stop_after):
    def run(folder: str, stop: int | None = None):
        model = make_model()
        hook = Rigl(model, DYING, STEPS)
        return fit(model, Batches(stop), loss_of, FIT, tmp_path / folder, hook), hook

    expected, whole = run("whole")
    with pytest.raises(KeyboardInterrupt):
        run("cut", stop_after)
    torch.manual_seed(123)
    resumed, again = run("cut")
    for name, tensor in expected.state_dict().items():
        assert torch.equal(tensor, resumed.state_dict()[name]), name
    assert all(torch.equal(whole.masks[name], again.masks[name]) for name in whole.masks)


def test_other_settings_are_refused(tmp_path: Path):
    model = make_model()
    fit(model, Batches(), loss_of, FIT, tmp_path, Rigl(model, SPARSE, STEPS))
    before = (tmp_path / "state.pt").read_bytes()
    other = RiglSettings(density=0.4, update_every=2)
    with pytest.raises(RecipeError, match="RigL was begun with"):
        fit(model, Batches(), loss_of, FIT, tmp_path, Rigl(model, other, STEPS))
    assert (tmp_path / "state.pt").read_bytes() == before


def test_dead_channels_stay_dead_and_the_cut_network_is_the_masked_one(tmp_path: Path):
    model = make_model()
    dense_macs = count_macs(model.config)
    hook = Rigl(model, DYING, STEPS)
    died: dict[str, torch.Tensor] = {}
    after = hook.before_update

    def watch(step, optimizer):
        after(step, optimizer)
        for name, alive in hook.channels.alive.items():
            assert not (alive & died.get(name, torch.zeros_like(alive))).any()
            died[name] = ~alive

    hook.before_update = watch
    trained = fit(model, Batches(), loss_of, FIT, tmp_path, hook)
    hook.finish(trained)
    smaller = cut(trained)
    assert count_macs(smaller.config) <= 0.4 * dense_macs
    widths = [*smaller.config.stage_channels, *smaller.config.block_channels]
    assert all(width % 4 == 0 for width in widths)
    assert smaller.config.sparsity_kind == "dynamic"
    images = torch.randn(8, 3, 16, 16)
    with torch.inference_mode():
        torch.testing.assert_close(smaller(images).logits, trained(images).logits, atol=1e-4, rtol=0)
    smaller.save_pretrained(tmp_path / "saved")
    again = FewshardImageForImageClassification.from_pretrained(tmp_path / "saved").eval()
    with torch.inference_mode():
        torch.testing.assert_close(again(images).logits, smaller(images).logits)


def silence(model: nn.Module, channels: slice, *norms: str) -> None:
    with torch.no_grad():
        for name in norms:
            model.get_submodule(name).weight[channels] = 0
            model.get_submodule(name).bias[channels] = 0


def test_cut_keeps_what_a_dead_looking_channel_still_adds():
    """A stream's channel is dead only where both of its writers are; a norm's bias alone keeps it alive."""
    model = make_model().eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.weight)
            nn.init.normal_(module.bias)
            nn.init.normal_(module.running_mean)
    silence(model, slice(0, 5), "stages.0.down.norm", "stages.0.block.1.norm", "stages.1.block.0.norm")
    silence(model, slice(5, 8), "stages.0.down.norm")
    with torch.no_grad():
        model.stages[1].down.norm.weight.zero_()
        model.stem.weight[3] = 0
        model.stem.bias[3] = 0
    assert [int(alive.sum()) for alive in living_channels(model).values()] == [7, 11, 12, 24, 11]
    smaller = cut(model)
    images = torch.randn(4, 3, 16, 16)
    with torch.inference_mode():
        torch.testing.assert_close(smaller(images).logits, model(images).logits, atol=1e-4, rtol=1e-4)
        rounded = cut(model, round_to=8)
        assert list(rounded.config.stage_channels) == [16, 24]
        assert list(rounded.config.block_channels) == [12, 16]
        torch.testing.assert_close(rounded(images).logits, model(images).logits, atol=1e-4, rtol=1e-4)
    silence(model, slice(None), "stages.1.block.0.norm")
    with pytest.raises(RecipeError, match=r"every channel of stages\.1\.block is dead"):
        cut(model)


def test_bad_settings_are_refused():
    for settings in (RiglSettings(1.0), RiglSettings(0.5, macs_share=0.0), RiglSettings(math.nan)):
        with pytest.raises(RecipeError, match="between 0 and 1"):
            Rigl(make_model(), settings, STEPS)
    with pytest.raises(RecipeError, match="not from Sequential"):
        Rigl(nn.Sequential(nn.Linear(8, 8)), RiglSettings(0.5, macs_share=0.5), STEPS)
    hook = Rigl(make_model(), DYING, STEPS)
    with pytest.raises(RecipeError, match="before the channels reached their budget"):
        hook.finish(hook.model)


def test_linears_can_be_trained_with_it(tmp_path: Path):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 1))
    hook = Rigl(model, RiglSettings(0.25, update_every=3), STEPS)

    class Numbers(Batches):
        def epoch(self, number):
            for images, _ in super().epoch(number):
                yield images[:, 0, 0, :8]

    settings = FitSettings(epochs=2, learning_rate=0.01, optimizer="adamw")
    fit(model, Numbers(), lambda m, x: (m(x).squeeze(1) - x.sum(1)).square().mean(), settings, tmp_path, hook)
    kept = sum(int(weight.count_nonzero()) for weight in hook.weights.values())
    assert kept <= hook.masks.num_kept == round(0.25 * (8 * 32 + 32))


def test_grown_weights_start_from_zero_and_the_smallest_go():
    weight = torch.tensor([3.0, 0.1, 2.0, 0.0, 0.0])
    mask = torch.tensor([True, True, True, False, False])
    gradient = torch.tensor([0.0, 0.0, 0.0, 1.0, 5.0])
    everywhere = torch.ones(5, dtype=torch.bool)
    assert moved_mask(weight, gradient, mask, everywhere, 3, 1 / 3).tolist() == [
        True,
        False,
        True,
        False,
        True,
    ]
    places = torch.tensor([False, True, True, True, False])
    assert moved_mask(weight, gradient, mask, places, 3, 0.5).tolist() == [False, True, True, True, False]


def test_a_group_dies_little_by_little():
    torch.manual_seed(0)
    model = make_model()
    settings = RiglSettings(0.5, macs_share=0.3, cut_from=0.0, cut_until=0.02, round_to=1)
    hook = Rigl(model, settings, 100)
    widths = {name: int(alive.sum()) for name, alive in hook.channels.alive.items()}
    for _ in range(12):
        hook.channels.let_die(99)
        now = {name: int(alive.sum()) for name, alive in hook.channels.alive.items()}
        assert all(now[name] >= min(width - 1, 0.875 * width) for name, width in widths.items())
        widths = now
    assert hook.channels.within_budget()
