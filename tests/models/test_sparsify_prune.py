"""Structured pruning is exact where what goes is zero, reloads with its counts, and meets MACs or time."""

import copy
import dataclasses

import pytest
import torch
from torch import nn

from fewshard_models import (
    FewshardImageConfig,
    FewshardImageForImageClassification,
    FewshardTextConfig,
    FewshardTextForSequenceClassification,
)
from fewshard_models.card import load_card
from fewshard_models.checkpoint import save_checkpoint
from fewshard_models.classifier.load import load_checkpoint
from fewshard_models.counting import count_macs, count_parameters
from fewshard_models.errors import CheckpointError, RecipeError
from fewshard_models.evaluation.accuracy import kind_of, write_card
from fewshard_models.image_preprocessing import ImagePreprocessing
from fewshard_models.sparsify.allocation import choose_widths
from fewshard_models.sparsify.checkpoints import sparsify
from fewshard_models.sparsify.latency import LatencyTable, measure_cnn, measure_text
from fewshard_models.sparsify.prune import narrow_widths, prune_channels, prune_text
from fewshard_models.sparsify.report import compare, load_report


def make_cnn() -> FewshardImageForImageClassification:
    torch.manual_seed(0)
    config = FewshardImageConfig(
        image_size=16, num_labels=10, stem_channels=8, stage_channels=[16, 24], block_channels=[16, 16]
    )
    model = FewshardImageForImageClassification(config).eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias)
    return model


def make_text(**fields) -> FewshardTextForSequenceClassification:
    torch.manual_seed(0)
    config = FewshardTextConfig(
        vocab_size=50,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=48,
        initializer_range=0.3,
        **fields,
    )
    return FewshardTextForSequenceClassification(config).eval()


@pytest.mark.parametrize("taylor", [False, True])
def test_channels_are_pruned_by_torch_pruning_and_the_result_reloads(tmp_path, taylor):
    pytest.importorskip("torch_pruning")
    model = make_cnn()
    before = copy.deepcopy(model)
    if taylor:
        model(torch.randn(8, 3, 16, 16), labels=torch.arange(8) % 4).loss.backward()
    smaller = prune_channels(model, 0.5, round_to=4, taylor=taylor)
    assert count_macs(smaller.config) <= 0.5 * count_macs(before.config)
    widths = [*smaller.config.stage_channels, *smaller.config.block_channels]
    assert all(width % 4 == 0 for width in widths)
    save_checkpoint(smaller, tmp_path, torch.float32)
    again = load_checkpoint(tmp_path).model
    images = torch.randn(3, 3, 16, 16)
    with torch.inference_mode():
        torch.testing.assert_close(again(images).logits, smaller(images).logits)
    assert kind_of(again.config) == "static"
    assert count_parameters(again).total == sum(p.numel() for p in again.parameters())
    report = compare(before, again, "structured", {})
    assert report.macs == count_macs(again.config)
    assert report.parameters == count_parameters(again).total
    (layer,) = (layer for layer in report.layers if layer.name == "stages.1.down.conv")
    assert (layer.units, layer.units_before) == (smaller.config.stage_channels[1], 24)


def test_pruning_channels_that_are_zero_changes_nothing():
    pytest.importorskip("torch_pruning")
    model = make_cnn()
    with torch.no_grad():
        for name in ("stages.0.block.0", "stages.1.block.0"):
            layer = model.get_submodule(name)
            for tensor in (layer.conv.weight, layer.norm.weight, layer.norm.bias):
                tensor[2:10] = 0
    images = torch.randn(3, 3, 16, 16)
    with torch.inference_mode():
        expected = model(images).logits
    # Only the insides of blocks cost anything here, so they alone are narrowed.
    smaller = prune_channels(
        model, 0.5, lambda widths: widths["stages.0.block"] + widths["stages.1.block"], round_to=8
    )
    assert list(smaller.config.block_channels) == [8, 8]
    assert list(smaller.config.stage_channels) == [16, 24]
    with torch.inference_mode():
        torch.testing.assert_close(smaller(images).logits, expected, atol=1e-5, rtol=1e-5)


def test_heads_and_units_that_do_nothing_are_the_ones_that_go():
    model = make_text()
    with torch.no_grad():
        for layer, dead in zip(model.layers, ((0, 2), (1, 3)), strict=True):
            for head in dead:
                rows = slice(8 * head, 8 * head + 8)
                layer.attention.output.weight[:, rows] = 0
                for part in range(3):
                    layer.attention.qkv.weight[32 * part + 8 * head : 32 * part + 8 * head + 8] *= 1e-3
            layer.ffn.down.weight[:, dead[0] * 8 : dead[0] * 8 + 16] = 0
    smaller = prune_text(model, 0.59, lambda widths: 12 * widths["heads"] + widths["units"], round_to=16)
    assert (smaller.config.num_attention_heads, smaller.config.intermediate_size) == (2, 32)
    assert smaller.config.attention_size == 16
    ids = torch.randint(1, 50, (3, 9))
    with torch.inference_mode():
        torch.testing.assert_close(smaller(ids).logits, model(ids).logits, atol=1e-5, rtol=1e-4)


def test_text_meets_its_macs_and_moe_is_refused():
    model = make_text()
    smaller = prune_text(model, 0.6, round_to=8)
    assert 0.4 * count_macs(model.config) < count_macs(smaller.config) <= 0.6 * count_macs(model.config)
    with pytest.raises(RecipeError, match="an MoE model is not pruned"):
        prune_text(make_text(num_experts=4), 0.5)
    with pytest.raises(RecipeError, match="no widths reach"):
        prune_text(model, 0.01)


def test_a_latency_table_decides_where_to_cut():
    seconds = {
        "first": {(4,): 10.0, (2,): 9.0},
        "second": {(4, 4): 10.0, (4, 2): 4.0, (2, 4): 9.5, (2, 2): 3.5},
    }
    table = LatencyTable("cpu", "float32", 64, 5, {"first": ("a",), "second": ("a", "b")}, seconds)
    assert table.predict({"a": 2, "b": 4}) == pytest.approx(18.5)
    salience = {"a": [1.0] * 4, "b": [1.5] * 4}
    candidates = {"a": [2, 4], "b": [2, 4]}
    assert choose_widths(salience, candidates, table.predict, 14.0) == {"a": 4, "b": 2}
    by_units = choose_widths(salience, candidates, lambda widths: sum(widths.values()), 6.0)
    assert by_units == {"a": 2, "b": 4}


def test_latency_is_measured_at_every_candidate():
    table = measure_cnn(make_cnn(), torch.float32, batch=2, round_to=8, rounds=1)
    assert set(table.parts) >= {"stages.0.down", "stages.1.block.0"}
    assert set(table.seconds["stages.1.block.0"]) == {(i, o) for i in (8, 16, 24) for o in (8, 16)}
    assert table.predict({"stem": 8, **dict.fromkeys(("stages.0", "stages.1"), 8), "stages.0.block": 16,
                          "stages.1.block": 16}) > 0  # fmt: skip
    table = measure_text(make_text(), torch.float32, batch=2, round_to=16, rounds=1)
    assert set(table.seconds["attention"]) == {(1,), (2,), (3,), (4,)}
    assert set(table.seconds["ffn"]) == {(16,), (32,), (48,)}
    assert dataclasses.astuple(table)[:4] == ("cpu", "float32", 2, 1)


def test_narrow_widths_come_near_to_the_target():
    full = {"stem": 24, "a": 64, "b": 256}
    found = narrow_widths(full, lambda widths: widths["a"] * widths["b"], 0.25 * 64 * 256)
    assert found == {"stem": 24, "a": 32, "b": 128}


@pytest.fixture
def cnn_folder(tmp_path):
    folder = tmp_path / "dense"
    save_checkpoint(make_cnn(), folder)
    ImagePreprocessing(16, 16, (0.5,) * 3, (0.25,) * 3).save(folder)
    return folder


def test_a_checkpoint_is_pruned_by_magnitude(cnn_folder, tmp_path, data):
    out = tmp_path / "out"
    report = sparsify(cnn_folder, out, density=0.3)
    assert report.macs == report.macs_before
    kept = sum(layer.density * layer.weights for layer in report.layers if layer.name.startswith("stages"))
    stages = sum(layer.weights for layer in report.layers if layer.name.startswith("stages"))
    assert kept / stages == pytest.approx(0.3, abs=1e-3)
    assert load_report(out) == report
    assert "in all" in report.rows()[-1]
    card = write_card(out, "x", "y", seed=0)
    assert card.kind == "static"
    assert card.sparsity == pytest.approx(0.7, abs=0.02)
    assert card.extra["sparsified"]["macs_share"] == 1.0
    assert load_card(out) == card


def test_a_checkpoint_is_pruned_to_a_share_of_time(cnn_folder, tmp_path, monkeypatch):
    """Times are made up: those of so small a network hardly depend on its widths."""
    pytest.importorskip("torch_pruning")

    def measured(model, dtype, batch, round_to):
        assert (batch, round_to) == (2, 8)
        pairs = [("stages.0", "stages.0.block"), ("stages.1", "stages.1.block")]
        seconds = {f"{a}+{b}": {(i, o): i + o for i in (8, 16, 24) for o in (8, 16)} for a, b in pairs}
        return LatencyTable("cpu", "float32", 2, 1, {f"{a}+{b}": (a, b) for a, b in pairs}, seconds)

    monkeypatch.setattr("fewshard_models.sparsify.checkpoints.measure_cnn", measured)
    report = sparsify(cnn_folder, tmp_path / "out", time_share=0.6, round_to=8, batch=2)
    assert report.macs < report.macs_before
    assert load_checkpoint(tmp_path / "out").model.config.sparsity_kind == "static"


def test_mistakes_are_said_and_nothing_is_written(cnn_folder, tmp_path):
    out = tmp_path / "out"
    for wrong in ({"density": 0.0}, {"density": 1.0}, {"macs_share": 1.2}, {"time_share": -1.0}):
        with pytest.raises(RecipeError, match="between 0 and 1"):
            sparsify(cnn_folder, out, **wrong)
    with pytest.raises(RecipeError, match="give one of"):
        sparsify(cnn_folder, out, density=0.5, macs_share=0.5)
    with pytest.raises(RecipeError, match="would empty"):
        sparsify(cnn_folder, out, density=1e-4)
    with pytest.raises(RecipeError, match="exists already"):
        sparsify(cnn_folder, cnn_folder, density=0.5)
    assert not out.exists()
    (cnn_folder / "sparsity.json").write_text("{}")
    with pytest.raises(CheckpointError, match="cannot be read"):
        load_report(cnn_folder)


def test_another_architecture_is_refused(tmp_path):
    from transformers import ViTConfig, ViTForImageClassification

    config = ViTConfig(
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        image_size=16,
        patch_size=8,
    )
    ViTForImageClassification(config).save_pretrained(tmp_path / "vit")
    with pytest.raises(RecipeError, match="its own architectures only"):
        sparsify(tmp_path / "vit", tmp_path / "out", density=0.5)
