"""Builds the right `Model` for a checkpoint; called in the replica by `rayserve.loading`, and by tests."""

from dataclasses import asdict
from typing import Any, get_args

import torch
from transformers import PreTrainedConfig

from fewshard_core.values import ModelInfo, ProblemType
from fewshard_models.card import Card
from fewshard_models.checkpoint import Checkpoint, load_checkpoint, resolve
from fewshard_models.devices import DTYPES, choose_device, choose_dtype
from fewshard_models.errors import ModelsError
from fewshard_models.text import FewshardTextForSequenceClassification
from fewshard_serve.backends.image import ImageModel
from fewshard_serve.backends.packed_text import PackedTextModel
from fewshard_serve.backends.padded_text import PaddedTextModel
from fewshard_serve.errors import NotReady
from fewshard_serve.model import Model

MAX_EXAMPLES = 4
MAX_EXAMPLE_LENGTH = 8000
"""The card travels with every look at a model's state."""


def load_model(name: str, path: str, device: str = "auto", dtype: str = "auto") -> Model:
    """Load the checkpoint at `path` (zoo:<name>, hf:<owner>/<name> or a directory) as model `name`.

    Raises NotReady saying what is wrong with the checkpoint or the device and what to do.
    """
    try:
        chosen_device = choose_device(device).name
        chosen_dtype = choose_dtype(dtype, chosen_device).name
        checkpoint = load_checkpoint(resolve(path), DTYPES[chosen_dtype], chosen_device)
        network = checkpoint.model
        return _wrap(
            checkpoint,
            describe(
                name,
                checkpoint.task,
                network.config,
                checkpoint.card,
                type(network).__name__,
                chosen_device,
                chosen_dtype,
            ),
        )
    except (ModelsError, ValueError) as error:
        raise NotReady(f"model {name!r} cannot be loaded: {error}") from error


def _wrap(checkpoint: Checkpoint, info: ModelInfo) -> Model:
    if isinstance(checkpoint.model, FewshardTextForSequenceClassification):
        return PackedTextModel(checkpoint, info)
    if checkpoint.task == "text":
        return PaddedTextModel(checkpoint, info)
    return ImageModel(checkpoint, info)


def describe(
    name: str,
    task: str,
    config: PreTrainedConfig,
    card: Card | None,
    architecture: str,
    device: str,
    dtype: str,
) -> ModelInfo:
    """What a model is, from its checkpoint and what was chosen for it here."""
    fields = _card_fields(card)
    return ModelInfo(
        name=name,
        task=task,
        kind=str(fields.get("kind", "moe" if _has_experts(config) else "dense")),
        labels=tuple(config.id2label[index] for index in sorted(config.id2label)),
        problem_type=_problem_type(config),
        architecture=architecture,
        dtype=dtype,
        device=_device_name(device),
        max_tokens=getattr(config, "max_position_embeddings", 0) if task == "text" else 0,
        card=_told_of(fields),
    )


def _told_of(fields: dict[str, Any]) -> dict[str, Any]:
    """A card without its golden logits; of their inputs a few that are small, for whoever wants to try."""
    told = {key: value for key, value in fields.items() if key != "golden"}
    inputs = [golden["input"] for golden in fields.get("golden", ())]
    small = [given for given in inputs if isinstance(given, str) and len(given) <= MAX_EXAMPLE_LENGTH]
    return {**told, "examples": small[:MAX_EXAMPLES]} if small else told


def _card_fields(card: Card | None) -> dict[str, Any]:
    return {} if card is None else asdict(card)


def _problem_type(config: PreTrainedConfig) -> ProblemType:
    stated = config.problem_type
    return stated if stated in get_args(ProblemType) else "single_label_classification"


def _has_experts(config: PreTrainedConfig) -> bool:
    return any(
        getattr(config, field, 0) for field in ("num_experts", "num_local_experts", "n_routed_experts")
    )


def _device_name(device: str) -> str:
    return torch.cuda.get_device_name() if device == "cuda" else device
