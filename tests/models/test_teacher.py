"""A larger encoder of another architecture as the text recipes' teacher, on made-up data."""

import shutil

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoTokenizer, MPNetConfig, MPNetModel

from fewshard_models.data.sst2 import load_sst2
from fewshard_models.errors import RecipeError
from fewshard_models.recipes import teacher
from fewshard_models.recipes.registry import train
from fewshard_models.recipes.tiers import LARGER_TUNING
from fewshard_models.recipes.workspace import Workspace


@pytest.fixture
def larger(small_encoder, tmp_path):
    """An MPNet, whose attention has relative positions that our own encoder does not know."""
    folder = tmp_path / "larger"
    tokenizer = AutoTokenizer.from_pretrained(small_encoder)
    tokenizer.save_pretrained(folder)
    torch.manual_seed(1)
    config = MPNetConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=140,
        pad_token_id=tokenizer.pad_token_id,
    )
    MPNetModel(config).save_pretrained(folder)
    return folder


@pytest.mark.slow
def test_its_answers_are_the_targets_and_it_is_trained_once(data, small_encoder, larger, tmp_path):
    work = Workspace(tmp_path / "runs", init=small_encoder, teacher=larger, epochs=2)
    train("sst2-narrow", work, tmp_path / "out")
    runs = work.run_dir / "tiny"
    texts, _ = load_sst2("train")
    made = runs / "sst2-larger-teacher" / "model"
    expected = teacher.logits_of(made, texts)
    torch.testing.assert_close(load_file(runs / "sst2-targets" / "targets.safetensors")["logits"], expected)
    trained_at = (made / "model.safetensors").stat().st_mtime_ns
    train("sst2-dense", work, tmp_path / "dense")
    assert (made / "model.safetensors").stat().st_mtime_ns == trained_at
    with pytest.raises(RecipeError, match="teacher was"):
        train("sst2-narrow", Workspace(tmp_path / "runs", init=small_encoder, epochs=2), tmp_path / "other")


def test_one_that_is_fine_tuned_already_is_shared(data, small_encoder, larger, tmp_path):
    texts, labels = load_sst2("train")
    made = teacher.fine_tuned(
        Workspace(tmp_path / "a", teacher=larger, epochs=1), LARGER_TUNING, texts, labels
    )
    other = Workspace(tmp_path / "b", seed=1, teacher=made)
    assert teacher.fine_tuned(other, LARGER_TUNING, texts, labels) == made
    assert not other.run_dir.exists()


def test_its_answers_are_shared_too(data, small_encoder, larger, tmp_path, monkeypatch):
    texts, labels = load_sst2("train")
    work = Workspace(tmp_path / "a", teacher=larger, epochs=1)
    made = teacher.fine_tuned(work, LARGER_TUNING, texts, labels)
    asked = []
    logits_of = teacher.logits_of
    monkeypatch.setattr(teacher, "logits_of", lambda *args: asked.append(args) or logits_of(*args))
    other = Workspace(tmp_path / "b", seed=1, teacher=made)
    first = teacher.answers(other, made, texts)
    assert not (made / "answers.safetensors").exists()  # it is not this run's folder
    torch.testing.assert_close(teacher.answers(work, made, texts), first)
    assert len(asked) == 2
    torch.testing.assert_close(teacher.answers(other, made, texts), first)
    assert len(asked) == 2
    assert len(teacher.answers(other, made, texts[1:])) == len(texts) - 1
    assert len(asked) == 3


def test_padding_changes_no_answer(data, small_encoder, larger, tmp_path):
    work = Workspace(tmp_path / "runs", teacher=larger, epochs=1)
    texts, labels = load_sst2("train")
    folder = teacher.fine_tuned(work, LARGER_TUNING, texts, labels)
    together = teacher.logits_of(folder, texts[:9])
    alone = torch.cat([teacher.logits_of(folder, [text]) for text in texts[:9]])
    torch.testing.assert_close(together, alone, atol=2e-2, rtol=0)


def test_an_unfit_directory_is_refused(data, small_encoder, larger, tmp_path):
    work = Workspace(tmp_path / "runs", init=small_encoder, teacher=tmp_path / "nothing", epochs=1)
    with pytest.raises(RecipeError, match=r"--teacher .* lacks config.json and model.safetensors"):
        train("sst2-narrow", work, tmp_path / "out")
    shutil.copytree(larger, tmp_path / "odd")
    (tmp_path / "odd" / "config.json").write_text("{}")
    work = Workspace(tmp_path / "runs2", init=small_encoder, teacher=tmp_path / "odd", epochs=1)
    with pytest.raises(RecipeError, match="give the directory of a pretrained text encoder"):
        train("sst2-narrow", work, tmp_path / "out")
