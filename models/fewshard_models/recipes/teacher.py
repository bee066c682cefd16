"""An optional larger teacher, of any architecture that transformers supports. Used by `sst2`."""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from transformers import (
    AutoConfig,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedConfig,
)

from fewshard_models.data.sst2 import LABELS
from fewshard_models.devices import choose_dtype, training_device
from fewshard_models.errors import RecipeError
from fewshard_models.files import whole_file, whole_folder
from fewshard_models.recipes.texts import TextBatch, TextBatches
from fewshard_models.recipes.tiers import FineTuning
from fewshard_models.recipes.training_loop import fit
from fewshard_models.recipes.workspace import Workspace, digest
from fewshard_models.text import PackedTokens
from fewshard_models.text.inference import over_batches, tokenize


def fine_tuned(work: Workspace, settings: FineTuning, texts: list[str], labels: list[int]) -> Path:
    """The checkpoint of the encoder in `work.teacher`, fine-tuned once on the labels.

    A classifier of exactly these classes is used as it is, so that several seeds can share it.
    Raises RecipeError if transformers cannot load the directory as a classifier.
    """
    assert work.teacher is not None
    if tuple(_config(work.teacher).id2label.values()) == LABELS:
        return work.teacher
    asked = {"teacher": digest(work.teacher), "recipe": asdict(settings)}
    folder = work.phase("sst2-larger-teacher", asked)
    if (folder / "model").is_dir():
        return folder / "model"
    model, tokenizer = _pretrained(work.teacher)
    model.get_input_embeddings().requires_grad_(False)
    ids = tokenize(tokenizer, texts)
    fit_settings = replace(settings.fit, epochs=work.num_epochs(settings.fit.epochs), seed=work.seed)

    def loss_of(network: nn.Module, batch: TextBatch) -> Tensor:
        return F.cross_entropy(_logits(network, batch.packed, tokenizer.pad_token_id), batch.labels)

    batches = TextBatches(ids, labels, settings.batch_size, work.seed)
    trained: Any = fit(model.to(training_device()), batches, loss_of, fit_settings, folder)
    with whole_folder(folder / "model") as made:
        trained.cpu().save_pretrained(made)
        tokenizer.save_pretrained(made)
    return folder / "model"


def answers(work: Workspace, folder: Path, texts: list[str]) -> Tensor:
    """`logits_of` for a teacher from `fine_tuned`, cached beside teachers that were made in this workspace.

    Other seeds reuse the cache: a larger teacher's logits take as long as a student's training.
    """
    file, asked = folder / "answers.safetensors", {"texts": _digest_of(texts)}
    if file.is_file():
        with safe_open(file, framework="pt") as kept:
            if kept.metadata() == asked:
                found: Tensor = kept.get_tensor("logits")
                return found
    logits = logits_of(folder, texts)
    if folder.is_relative_to(work.run_dir):
        with whole_file(file) as partial:
            save_file({"logits": logits.contiguous()}, partial, metadata=asked)
    return logits


def logits_of(folder: Path, texts: list[str]) -> Tensor:
    """The fine-tuned teacher's logits, fp32 [N, num_labels], computed in bf16 where that is faster."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    device = training_device()
    model = AutoModelForSequenceClassification.from_pretrained(folder, dtype=torch.float32).eval().to(device)
    bf16 = choose_dtype(device=device.type).name == "bf16"

    def answer(packed: PackedTokens) -> Tensor:
        with torch.autocast(device.type, dtype=torch.bfloat16, enabled=bf16):
            return _logits(model, packed, tokenizer.pad_token_id)

    return over_batches(tokenize(tokenizer, texts), answer, device)


def _digest_of(texts: list[str]) -> str:
    return hashlib.sha256("\n".join(texts).encode()).hexdigest()


def _config(folder: Path) -> PreTrainedConfig:
    with _loading(folder):
        return AutoConfig.from_pretrained(folder, trust_remote_code=False, local_files_only=True)


def _pretrained(folder: Path) -> tuple[Any, Any]:
    with _loading(folder):
        model = AutoModelForSequenceClassification.from_pretrained(
            folder,
            id2label=dict(enumerate(LABELS)),
            label2id={name: index for index, name in enumerate(LABELS)},
            dtype=torch.float32,
            trust_remote_code=False,
            local_files_only=True,
        )
        return model, AutoTokenizer.from_pretrained(folder, local_files_only=True)


@contextmanager
def _loading(folder: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, ValueError) as error:
        raise RecipeError(
            f"--teacher {folder} cannot be loaded: {error}; give the directory of a pretrained text encoder"
        ) from error


def _logits(model: nn.Module, packed: PackedTokens, pad_id: int) -> Tensor:
    """fp32 logits of a packed batch, padded for a transformers model."""
    rows = packed.input_ids.split(packed.lengths)
    ids = pad_sequence(list(rows), batch_first=True, padding_value=pad_id)
    mask = pad_sequence([torch.ones_like(row) for row in rows], batch_first=True)
    logits: Tensor = model(input_ids=ids, attention_mask=mask).logits
    return logits.float()
