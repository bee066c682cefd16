"""Golden inputs before traffic: damaged weights are found; routing is counted exactly, without the check."""

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import BertTokenizer

from fewshard_core.values import TextInput
from fewshard_models import FewshardTextConfig, FewshardTextForSequenceClassification
from fewshard_models.card import Card, Golden
from fewshard_models.checkpoint import save_checkpoint
from fewshard_models.errors import CheckpointError
from fewshard_serve.backends.load import load_model
from fewshard_serve.errors import NotReady

TEXTS = ["good film", "bad film", "the film is good and not bad", "is"]


def make_checkpoint(directory: Path, num_experts: int = 4) -> Path:
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "the", "good", "bad", "film", "is", "not", "and"]
    BertTokenizer(vocab={piece: i for i, piece in enumerate(pieces)}).save_pretrained(directory)
    torch.manual_seed(2)
    config = FewshardTextConfig(
        vocab_size=len(pieces),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=24,
        max_position_embeddings=32,
        num_experts=num_experts,
    )
    model = FewshardTextForSequenceClassification(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    save_checkpoint(model, directory, torch.float32)
    return directory


def write_card(directory: Path) -> None:
    model = load_model("m", str(directory), "cpu", "fp32")
    logits = model.run(model.prepare([TextInput(text) for text in TEXTS])).logits
    golden = [Golden(text, row.tolist()) for text, row in zip(TEXTS, logits, strict=True)]
    figures = {"accuracy": 0.9, "f1": 0.9, "num_examples": 4, "seed": 0, "sparsity": 0.0}
    sizes = {"parameters_total": 1, "parameters_active": 1, "macs": 1, "macs_input": "25 tokens"}
    words = {
        "name": "m",
        "task": "text",
        "kind": "moe",
        "dataset": "none",
        "recipe": "none",
        "commit": "none",
    }
    Card(**words, **figures, **sizes, golden=golden).save(directory)


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    write_card(make_checkpoint(tmp_path))
    return tmp_path


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_sound_checkpoint_passes(directory, dtype):
    model = load_model("m", str(directory), "cpu", dtype)
    model.self_check()
    assert model.info.card["accuracy"] == 0.9
    assert "golden" not in model.info.card


def test_one_wrong_weight_is_found(directory):
    weights = load_file(directory / "model.safetensors")
    weights["layers.1.attention.output.bias"][3] += 0.5
    save_file(weights, directory / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match="golden inputs wrongly: a logit is off by"):
        load_model("m", str(directory), "cpu", "fp32").self_check()


def test_weights_that_are_not_numbers_are_found(directory):
    weights = load_file(directory / "model.safetensors")
    weights["classifier.bias"][0] = float("nan")
    save_file(weights, directory / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(NotReady, match="logits that are not finite"):
        load_model("m", str(directory), "cpu", "fp32")


def test_routing_counts_are_exact_and_start_after_the_check(directory):
    model = load_model("m", str(directory), "cpu", "fp32")
    model.self_check()
    counts = model.expert_counts()
    assert counts is not None
    assert counts.tokens.sum() == 0
    num_tokens = 0
    for texts in (TEXTS, TEXTS[:2], TEXTS[2:]):
        items = model.prepare([TextInput(text) for text in texts])
        num_tokens += sum(item.num_tokens for item in items)
        model.run(items)
    counts = model.expert_counts()
    assert counts.tokens.shape == (2, 4)
    assert counts.tokens.sum(axis=1).tolist() == [num_tokens] * 2
    assert counts.rows.tolist() == [num_tokens] * 2
    np.testing.assert_allclose(counts.probability.sum(axis=1), num_tokens, rtol=1e-5)
    assert (counts.entropy > 0).all()
    assert (counts.entropy < num_tokens * np.log(4)).all()


def test_dense_models_have_no_routing_counts(tmp_path):
    model = load_model("m", str(make_checkpoint(tmp_path, num_experts=0)), "cpu", "fp32")
    assert model.info.kind == "dense"
    assert model.expert_counts() is None
