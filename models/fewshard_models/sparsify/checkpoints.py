"""Makes a sparser checkpoint from a checkpoint on disk. Called by `fewshard sparsify`."""

import copy
import shutil
from dataclasses import dataclass
from functools import singledispatch
from pathlib import Path
from typing import Any, Literal

import torch
from transformers import PreTrainedModel

from fewshard_models.checkpoint import save_checkpoint
from fewshard_models.classifier.load import load_checkpoint
from fewshard_models.devices import choose_dtype, storage_dtype
from fewshard_models.errors import RecipeError
from fewshard_models.image import FewshardImageForImageClassification
from fewshard_models.sparsify.allocation import check_share
from fewshard_models.sparsify.latency import measure_cnn, measure_text
from fewshard_models.sparsify.masks import magnitude_masks, prunable
from fewshard_models.sparsify.prune import Cost, prune_channels, prune_text
from fewshard_models.sparsify.report import SparsityReport, compare
from fewshard_models.text import FewshardTextForSequenceClassification

_WEIGHTS = ("config.json", "card.json", "sparsity.json", "model.safetensors.index.json")


def sparsify(
    source: Path,
    out: Path,
    *,
    density: float | None = None,
    macs_share: float | None = None,
    time_share: float | None = None,
    scope: Literal["global", "layer"] = "global",
    round_to: int = 16,
    batch: int = 64,
) -> SparsityReport:
    """Prune the checkpoint in `source` to exactly one of the three shares, and write it to `out`.

    density: share of the weights to keep, by magnitude.
    macs_share: share of the MACs to keep, by structured pruning.
    time_share: share of the measured time to keep, by structured pruning.
    scope: whether magnitudes are compared globally or per layer.
    round_to: multiple of which widths are.
    batch: batch size for measuring times.

    `out` is a new directory; it also receives the tokenizer or preprocessor and `sparsity.json`. Raises
    RecipeError or CheckpointError, with nothing written, for a share outside (0, 1), for an architecture that
    is not ours, or if `out` exists.
    """
    if out.exists():
        raise RecipeError(f"{out} exists already; choose a new directory")
    given = {"density": density, "macs_share": macs_share, "time_share": time_share}
    asked: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
    if len(asked) != 1:
        raise RecipeError("give one of density, macs_share and time_share")
    for name, value in asked.items():
        check_share(name, value)
    model = load_checkpoint(source).model
    if prune_structured.dispatch(type(model)) is prune_structured.dispatch(object):
        raise RecipeError(
            f"{source} holds {type(model).__name__}; Fewshard prunes its own architectures only"
        )
    before = copy.deepcopy(model)
    if density is not None:
        magnitude_masks(prunable(model), density, scope).apply(model)
        model.config.sparsity_kind = "static"
        method, after = f"magnitude, {scope}", model
        asked["scope"] = scope
    else:
        share = macs_share if time_share is None else time_share
        assert share is not None
        dtype = storage_dtype(choose_dtype(device="cpu").name)
        wanted = Structured(share, time_share is not None, round_to, batch, dtype)
        method, after = "structured", prune_structured(model, wanted)
        asked |= {"round_to": round_to} | ({} if time_share is None else {"batch": batch})
    report = compare(before, after, method, asked)
    _write(source, out, after, report)
    return report


@dataclass(frozen=True, slots=True)
class Structured:
    """How much of a network to leave, in whole channels or units.

    share: of its MACs, or of its time where `is_time`.
    round_to: widths are multiples of it.
    batch: the items of a timed pass.
    dtype: in which passes are timed.
    """

    share: float
    is_time: bool
    round_to: int
    batch: int
    dtype: torch.dtype


@singledispatch
def prune_structured(model: PreTrainedModel, wanted: Structured) -> PreTrainedModel:
    """A smaller network of the same architecture; an architecture registers its own function here."""
    raise RecipeError(f"{type(model).__name__} cannot be pruned")


@prune_structured.register
def _(model: FewshardImageForImageClassification, wanted: Structured) -> PreTrainedModel:
    cost_of: Cost | None = None
    if wanted.is_time:
        cost_of = measure_cnn(model, wanted.dtype, wanted.batch, wanted.round_to).predict
    return prune_channels(model, wanted.share, cost_of, wanted.round_to)


@prune_structured.register
def _(model: FewshardTextForSequenceClassification, wanted: Structured) -> PreTrainedModel:
    cost_of: Cost | None = None
    if wanted.is_time and not model.config.num_experts:
        cost_of = measure_text(model, wanted.dtype, wanted.batch, wanted.round_to).predict
    return prune_text(model, wanted.share, cost_of, wanted.round_to)


def _write(source: Path, out: Path, model: PreTrainedModel, report: SparsityReport) -> None:
    """Write to a folder beside `out` and rename it when complete, so that no partial checkpoint remains."""
    partial = out.with_name(out.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    save_checkpoint(model, partial)
    for file in source.iterdir():
        if file.suffix in (".json", ".txt", ".model") and file.name not in _WEIGHTS:
            shutil.copy(file, partial / file.name)
    report.save(partial)
    partial.rename(out)
