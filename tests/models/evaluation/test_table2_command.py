"""`fewshard table2` and `evaluate --full` on small made-up checkpoints, from weights to files."""

import argparse
import json
import shutil
from functools import partial
from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer

from fewshard_models.bench.measurement import Budget
from fewshard_models.checkpoint import save_checkpoint
from fewshard_models.errors import CheckpointError
from fewshard_models.evaluation import comparison, store
from fewshard_models.evaluation.accuracy import write_card
from fewshard_models.evaluation.result import load
from fewshard_models.image import FewshardImageConfig, FewshardImageForImageClassification
from fewshard_models.image_preprocessing import ImagePreprocessing
from fewshard_models.text import FewshardTextConfig, FewshardTextForSequenceClassification

commands = pytest.importorskip("fewshard_serve.commands", reason="the commands belong to the server")
QUICK = Budget(0, 2, 2, 1)


def call(name: str, *words: str) -> int:
    """The command's exit code; through its own parser, whether or not it is installed."""
    from fewshard_serve.commands import evaluate, table2

    parser = argparse.ArgumentParser()
    subparsers = parser.add_subparsers()
    for module in (evaluate, table2):
        module.register(subparsers)
    args = parser.parse_args([name, *words])
    return args.run(args)


def make_text(folder: Path, encoder: Path, seed: int, num_experts: int, name: str) -> None:
    tokenizer = AutoTokenizer.from_pretrained(encoder)
    torch.manual_seed(seed)
    config = FewshardTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        num_experts=num_experts,
        num_labels=2,
        initializer_range=0.2,
    )
    save_checkpoint(FewshardTextForSequenceClassification(config), folder)
    tokenizer.save_pretrained(folder)
    write_card(folder, name, f"small/{name}", seed)


def make_image(folder: Path, width: int, name: str) -> None:
    torch.manual_seed(0)
    widths = [width, width, width]
    config = FewshardImageConfig(stem_channels=8, stage_channels=widths, block_channels=widths, num_labels=10)
    save_checkpoint(FewshardImageForImageClassification(config), folder)
    ImagePreprocessing(32, 32, (0.5,) * 3, (0.25,) * 3).save(folder)
    write_card(folder, name, f"small/{name}", 0)


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory, small_data, small_encoder):
    folder = tmp_path_factory.mktemp("models")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FEWSHARD_DATA", str(small_data))
        for seed in (0, 1):
            make_text(folder / f"seed{seed}" / "sst2-dense", small_encoder, seed, 0, "sst2-dense")
            make_text(folder / f"seed{seed}" / "sst2-moe", small_encoder, seed, 4, "sst2-moe")
        make_image(folder / "seed0" / "cifar10-dense", 16, "cifar10-dense")
        make_image(folder / "seed0" / "cifar10-static", 8, "cifar10-static")
    return folder


@pytest.fixture
def quick(monkeypatch, data):
    """Short timings and no process for the peak of memory."""
    monkeypatch.setattr("fewshard_models.evaluation.assessment.peak_bytes", lambda *_: 2**20)
    monkeypatch.setattr(comparison, "time_side_by_side", partial(_quickly, comparison.time_side_by_side))


def _quickly(measure, *args, **kwargs):
    return measure(*args, **{**kwargs, "budget": QUICK})


def test_from_checkpoints_to_the_table_and_again_from_files_alone(checkpoints, quick, tmp_path, capsys):
    options = ["--tier", "small", "--out", str(tmp_path)]
    assert call("table2", *options, "--models", str(checkpoints)) == 0
    files = sorted(path.name for path in (tmp_path / "seeds" / "small").iterdir())
    assert files == [
        "cifar10-dense-seed0.json",
        "cifar10-static-seed0.json",
        "sst2-dense-seed0.json",
        "sst2-dense-seed1.json",
        "sst2-moe-seed0.json",
        "sst2-moe-seed1.json",
    ]
    moe = load(tmp_path / "seeds" / "small" / "sst2-moe-seed1.json")
    dense = load(tmp_path / "seeds" / "small" / "sst2-dense-seed1.json")
    assert moe.timings.dense == dense.weights
    assert moe.timings.beside == ("sst2-dense", "sst2-moe")
    assert [time.batch for time in moe.timings.batches] == [1, 8, 64]
    for layers in moe.routing.values():
        assert [pytest.approx(1, abs=1e-3)] * 2 == [sum(layer) for layer in layers]
    table = json.loads((tmp_path / "table2.json").read_text())
    rows = {row["system"]: row for row in table["rows"]}
    assert rows["sst2-moe"]["seeds"] == [0, 1]
    assert rows["sst2-moe"]["accuracy"]["n"] == 2
    assert rows["cifar10-static"]["speeds"][2]["realised"] > 0
    assert rows["cifar10-narrow"]["missing"] == "not measured: no result file"
    text = (tmp_path / "table2.md").read_text()
    for words in ("## Targets", "## Routing", "## Other domain", "seed 0. Most unlike the whole", "91.4"):
        assert words in text
    capsys.readouterr()
    assert call("table2", *options) == 0
    out = capsys.readouterr().out
    assert "sst2-moe cannot be compared with sst2-narrow" in out
    again = json.loads((tmp_path / "table2.json").read_text())
    assert again["rows"] == table["rows"]


def test_only_new_weights_are_measured_again(checkpoints, quick, tmp_path, capsys):
    models = tmp_path / "models"
    shutil.copytree(checkpoints / "seed0" / "cifar10-dense", models / "a")
    options = ["--out", str(tmp_path / "out"), "--models", str(models)]
    call("table2", *options, "--no-times")
    file = tmp_path / "out" / "seeds" / "small" / "cifar10-dense-seed0.json"
    assert load(file).timings is None
    call("table2", *options)
    assert load(file).timings is not None
    capsys.readouterr()
    call("table2", *options)
    assert capsys.readouterr().err.replace("figures", "").find("cifar10-dense:") == -1
    old = load(file).weights
    torch.manual_seed(1)
    config = FewshardImageConfig(
        stem_channels=8, stage_channels=[16] * 3, block_channels=[16] * 3, num_labels=10
    )
    save_checkpoint(FewshardImageForImageClassification(config), models / "a")
    call("table2", *options)
    assert load(file).weights != old


def test_random_weights_have_times_and_no_accuracy(checkpoints, quick, tmp_path):
    models = tmp_path / "models"
    shutil.copytree(checkpoints / "seed0" / "sst2-dense", models / "a")
    card = json.loads((models / "a" / "card.json").read_text())
    card["extra"] = {"accuracy_missing": "needs pretrained weights"}
    (models / "a" / "card.json").write_text(json.dumps(card))
    call("table2", "--tier", "paper", "--out", str(tmp_path), "--models", str(models))
    text = (tmp_path / "table2-paper.md").read_text()
    assert "| 1 | not measured: needs pretrained weights | 91.4 |" in text
    (row,) = [row for row in json.loads((tmp_path / "table2-paper.json").read_text())["rows"] if row["seeds"]]
    assert row["speeds"][0]["ms"] > 0
    assert row["accuracy"] is None


def test_two_checkpoints_of_one_seed_are_refused(checkpoints, tmp_path):
    for name in ("a", "b"):
        shutil.copytree(checkpoints / "seed0" / "sst2-dense", tmp_path / name)
    with pytest.raises(CheckpointError, match=r"/a and .*/b both hold sst2-dense of seed 0"):
        store.find_checkpoints(tmp_path)
    with pytest.raises(CheckpointError, match="--models"):
        store.find_checkpoints(tmp_path / "nowhere")


def test_evaluate_in_full_says_all_and_writes_it(checkpoints, quick, tmp_path, capsys):
    paths = [str(checkpoints / "seed0" / name) for name in ("sst2-moe", "sst2-dense")]
    assert call("evaluate", *paths, "--full", "--limit", "30", "--json", str(tmp_path / "found.json")) == 0
    out = capsys.readouterr().out
    for words in ("class negative", "corrupted: typos 3", "batch of 64", "x the dense model's speed", "(2x:"):
        assert words in out
    found = json.loads((tmp_path / "found.json").read_text())
    assert [each["held_out"]["n"] for each in found] == [30, 30]
    assert found[0]["timings"]["dense"] == found[1]["weights"]


def test_evaluate_as_before_also_writes_json(checkpoints, data, tmp_path, capsys):
    path = str(checkpoints / "seed0" / "cifar10-static")
    assert call("evaluate", path, "--limit", "20", "--json", str(tmp_path / "found.json")) == 0
    header = capsys.readouterr().out.splitlines()[0]
    assert header.split() == ["checkpoint", "data", "n", "accuracy", "F1", "card", "says"]
    (found,) = json.loads((tmp_path / "found.json").read_text())
    assert (found["checkpoint"], found["n"]) == (path, 20)
