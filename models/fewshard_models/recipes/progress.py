"""Accuracy at the end of each epoch, for the training curve only: nothing is selected by it."""

from collections.abc import Callable

import torch
from torch import nn
from transformers import PreTrainedTokenizerBase

from fewshard_models.devices import choose_dtype
from fewshard_models.evaluation.tasks import held_out
from fewshard_models.recipes.images import normalise
from fewshard_models.text import FewshardTextForSequenceClassification
from fewshard_models.text.inference import over_all, tokenize

Accuracy = Callable[[nn.Module], float]
MAX_IMAGES = 2000
_IMAGE_BATCH = 500


def text_accuracy(tokenizer: PreTrainedTokenizerBase) -> Accuracy:
    """A function that measures a text model's accuracy on SST-2's dev set."""
    test = held_out("text")
    ids, labels = tokenize(tokenizer, list(test.inputs)), torch.from_numpy(test.labels)

    def measure(model: nn.Module) -> float:
        assert isinstance(model, FewshardTextForSequenceClassification)
        bf16 = _uses_bf16(model)
        logits = over_all(model, ids, lambda _, out: out.logits, autocast=bf16)
        return float((logits.argmax(dim=1) == labels).double().mean())

    return measure


def image_accuracy() -> Accuracy:
    """A function that measures a CNN's accuracy on the first images of CIFAR-10's test set."""
    test = held_out("image", MAX_IMAGES)
    pixels, labels = normalise(torch.from_numpy(test.inputs)), torch.from_numpy(test.labels)

    def measure(model: nn.Module) -> float:
        device = next(model.parameters()).device
        with (
            torch.inference_mode(),
            torch.autocast(device.type, dtype=torch.bfloat16, enabled=_uses_bf16(model)),
        ):
            found = [
                model(batch.to(device)).logits.argmax(dim=1).cpu() for batch in pixels.split(_IMAGE_BATCH)
            ]
        return float((torch.cat(found) == labels).double().mean())

    return measure


def _uses_bf16(model: nn.Module) -> bool:
    return choose_dtype(device=next(model.parameters()).device.type).name == "bf16"
