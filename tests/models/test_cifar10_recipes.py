"""The sparse CIFAR-10 recipes from start to card on made-up data."""

import dataclasses

import numpy as np
import pytest
import torch

from fewshard_models.card import load_card
from fewshard_models.checkpoint import save_checkpoint
from fewshard_models.classifier.load import load_checkpoint
from fewshard_models.counting import count_macs
from fewshard_models.recipes import cifar10, registry
from fewshard_models.recipes.images import ImageBatches, hide, image_distillation_loss
from fewshard_models.recipes.tiers import TIERS, TINY
from fewshard_models.recipes.training_curve import CURVE_FILE, load_curve
from fewshard_models.recipes.workspace import Workspace

SMALLER = dataclasses.replace(
    TINY,
    stage_channels=(16, 32),
    block_channels=(16, 16),
    epochs=8,
    static_epochs=2,
    batch_size=32,
    round_to=4,
)


@pytest.fixture
def work(data, tmp_path) -> Workspace:
    return Workspace(tmp_path / "runs")


def test_dynamic_is_cut_from_its_masked_twin_and_narrow_costs_the_same(work, tmp_path):
    cifar10.train_dense(SMALLER, work, tmp_path / "dense")
    cifar10.train_dynamic(SMALLER, work, tmp_path / "dst", tmp_path / "dense")
    dense_macs = count_macs(cifar10.dense_config(SMALLER))
    cut, masked = (load_checkpoint(tmp_path / name).model for name in ("dst", "dst-masked"))
    assert count_macs(cut.config) <= 0.4 * dense_macs
    assert count_macs(masked.config) == dense_macs
    assert cut.config.sparsity_kind == masked.config.sparsity_kind == "dynamic"
    images = torch.randn(5, 3, 32, 32)
    with torch.inference_mode():
        torch.testing.assert_close(cut(images).logits, masked(images).logits, atol=1e-4, rtol=0)
    card = load_card(tmp_path / "dst-masked")
    assert card is not None
    assert card.kind == "dynamic"
    assert card.sparsity > 0.5
    curve = load_curve(work.run_dir / "cifar10-dst" / CURVE_FILE)
    assert [line["epoch"] for line in curve if "accuracy" in line] == list(range(1, SMALLER.epochs + 1))
    cifar10.train_narrow(SMALLER, work, tmp_path / "narrow", tmp_path / "dense", tmp_path / "dst")
    narrow = load_checkpoint(tmp_path / "narrow").model
    assert narrow.config.sparsity_kind is None
    assert count_macs(narrow.config) == pytest.approx(count_macs(cut.config), rel=0.3)


def test_static_starts_from_the_dense_run_or_from_a_given_one(work, tmp_path, monkeypatch):
    pytest.importorskip("torch_pruning")
    cifar10.train_dense(SMALLER, Workspace(tmp_path / "others"), tmp_path / "given")
    smaller = {recipe.name: recipe for recipe in registry._image_recipes(SMALLER)}
    monkeypatch.setattr(registry, "RECIPES", smaller)
    card = registry.train(
        "cifar10-static", dataclasses.replace(work, init=tmp_path / "given"), tmp_path / "static"
    )
    assert card.kind == "static"
    assert card.macs <= 0.5 * count_macs(cifar10.dense_config(SMALLER))
    assert card.extra["sparsified"]["macs_share"] == pytest.approx(
        card.macs / count_macs(cifar10.dense_config(SMALLER)), abs=1e-3
    )
    assert not (work.run_dir / "tiny" / "cifar10-dense").exists()


def test_tiers_grow():
    macs = [count_macs(cifar10.dense_config(tier)) for tier in TIERS.values()]
    assert macs == sorted(macs)
    assert macs[-1] == pytest.approx(0.65e9, rel=0.1)


def test_cutout_hides_a_square_of_each_image():
    hidden = hide(torch.ones(200, 3, 32, 32), 8, np.random.default_rng(0)).eq(0)
    sizes = hidden[:, 0].sum((1, 2))
    assert sizes.max() == 64
    assert 16 <= sizes.min() < 64
    assert torch.equal(hidden[:, 0], hidden[:, 2])
    assert len({tuple(place) for place in hidden[:, 0].float().argmax(2).tolist()}) > 50
    images = np.zeros((4, 32, 32, 3), np.uint8)
    plain = ImageBatches(images, np.arange(4), 4, 0, 0)
    assert len(next(iter(plain.epoch(0)))[0].unique()) == 3


def test_a_student_equal_to_its_teacher_has_only_the_labels_to_learn():
    torch.manual_seed(0)
    model = cifar10.Cnn(cifar10.dense_config(SMALLER)).eval()
    images, labels = torch.randn(6, 3, 32, 32), torch.arange(6)
    loss = image_distillation_loss(model, label_weight=0.3)(model, (images, labels))
    torch.testing.assert_close(loss, 0.3 * torch.nn.functional.cross_entropy(model(images).logits, labels))


def test_a_value_beyond_half_precision_is_saved_whole(tmp_path):
    model = cifar10.Cnn(cifar10.dense_config(SMALLER))
    model.stages[0].down.norm.running_var.fill_(1e6)
    save_checkpoint(model, tmp_path)
    assert load_checkpoint(tmp_path).model.stages[0].down.norm.running_var.eq(1e6).all()
