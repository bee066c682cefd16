"""Accuracy of a saved checkpoint on its task's held-out set, and the card that says so."""

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from transformers import AutoTokenizer, PreTrainedConfig

from fewshard_models.card import Card, Golden
from fewshard_models.checkpoint import Checkpoint, load_checkpoint
from fewshard_models.counting import count_macs, count_parameters, macs_input
from fewshard_models.data.cifar10 import load_cifar10
from fewshard_models.data.sst2 import load_sst2
from fewshard_models.errors import CheckpointError
from fewshard_models.image.preprocessing import load_preprocessing
from fewshard_models.recipes.shrink import ffn_inputs
from fewshard_models.recipes.texts import logits_of, tokenize
from fewshard_models.recipes.workspace import commit
from fewshard_models.sparsify.report import load_report
from fewshard_models.text import FewshardTextForSequenceClassification
from fewshard_models.text.modeling import MoeFeedForward

GOLDEN_TEXTS = (
    "a warm and funny film that stays with you",
    "the plot goes nowhere and takes its time about it",
    "not bad at all",
    "it is hard to hate a film this sincere, but the second hour does its best",
    "brilliant",
    "dull",
    "the actors try, the script does not, and somewhere in between lies a decent short film",
    "I would gladly watch it again tomorrow!",
    "two hours of noise",
    "a small wonder",
    "the jokes are old and the timing is older",
    "she carries every scene she is in",
    "neither the thriller nor the romance works",
    "a patient, quiet, beautiful piece of work",
    "it falls apart long before the end",
    "smart, quick and very funny",
    "I have seen worse, though not this year",
    "the music alone is worth the ticket",
    "too long by half and too loud by far",
    "tender without being soft",
)
NUM_GOLDEN = 8


@dataclass(frozen=True, slots=True)
class Evaluation:
    """`predictions` and `labels` int64 [N]; `f1` is the mean over the classes."""

    dataset: str
    predictions: NDArray[np.int64]
    labels: NDArray[np.int64]

    @property
    def accuracy(self) -> float:
        return float((self.predictions == self.labels).mean())

    @property
    def f1(self) -> float:
        scores = []
        for label in np.unique(self.labels):
            predicted, true = self.predictions == label, self.labels == label
            scores.append(2 * (predicted & true).sum() / max(1, predicted.sum() + true.sum()))
        return float(np.mean(scores))


def evaluate(directory: Path, limit: int | None = None) -> Evaluation:
    """Run a checkpoint in fp32 over SST-2's dev set or CIFAR-10's test set (no test-time augmentation)."""
    checkpoint = load_checkpoint(directory)
    if checkpoint.task == "text":
        texts, labels = load_sst2("dev")
        logits = text_logits(checkpoint, texts[:limit])
        dataset = "SST-2 dev"
    else:
        images, image_labels = load_cifar10("test")
        labels = image_labels.tolist()
        logits = image_logits(checkpoint, images[:limit])
        dataset = "CIFAR-10 test"
    return Evaluation(dataset, logits.argmax(axis=1), np.asarray(labels[:limit]))


def text_logits(checkpoint: Checkpoint, texts: Sequence[str]) -> NDArray[np.float32]:
    """fp32 logits [N, num_labels]. Raises CheckpointError for an architecture that is not packed."""
    if not isinstance(checkpoint.model, FewshardTextForSequenceClassification):
        raise CheckpointError(f"{checkpoint.directory}: only Fewshard's text encoder can be evaluated so far")
    tokenizer = AutoTokenizer.from_pretrained(checkpoint.directory)
    return logits_of(checkpoint.model, tokenize(tokenizer, texts)).numpy()


def image_logits(
    checkpoint: Checkpoint, images: Sequence[NDArray[np.uint8]] | NDArray[np.uint8]
) -> NDArray[np.float32]:
    """fp32 logits [N, num_labels] of uint8 images [H, W, 3]."""
    preprocess = load_preprocessing(checkpoint.directory)
    parts = []
    with torch.inference_mode():
        for start in range(0, len(images), 250):
            pixels = np.stack([preprocess(image) for image in images[start : start + 250]])
            parts.append(checkpoint.model(torch.from_numpy(pixels)).logits.numpy())
    return np.concatenate(parts)


def write_card(directory: Path, name: str, recipe: str, seed: int, limit: int | None = None) -> Card:
    """Evaluate the saved checkpoint, count it, record its golden answers, and write `card.json`."""
    checkpoint = load_checkpoint(directory)
    evaluation = evaluate(directory, limit)
    parameters = count_parameters(checkpoint.model)
    config = checkpoint.model.config
    weights = [p for p in checkpoint.model.parameters() if p.ndim > 1]
    zeros = sum(int((p == 0).sum()) for p in weights) / sum(p.numel() for p in weights)
    card = Card(
        name=name,
        task=checkpoint.task,
        kind=kind_of(config),
        dataset=evaluation.dataset,
        accuracy=round(evaluation.accuracy, 5),
        f1=round(evaluation.f1, 5),
        num_examples=len(evaluation.labels),
        seed=seed,
        parameters_total=parameters.total,
        parameters_active=parameters.active,
        macs=count_macs(config),
        macs_input=macs_input(config),
        sparsity=round(zeros, 4),
        recipe=recipe,
        commit=commit(),
        golden=_golden(checkpoint),
        extra=_sparsified(directory),
    )
    card.save(directory)
    return card


def kind_of(config: PreTrainedConfig) -> str:
    """ "moe", "static", "dynamic" or "dense"."""
    if getattr(config, "num_experts", 0):
        return "moe"
    return getattr(config, "sparsity_kind", None) or "dense"


def _sparsified(directory: Path) -> dict[str, Any]:
    """How the checkpoint stands to what it was made from, where a sparsifier wrote a report."""
    report = load_report(directory)
    if report is None:
        return {}
    shares = {"macs_share": round(report.macs_share, 4), "density": round(report.density, 4)}
    return {"sparsified": {"method": report.method, **shares}}


def _golden(checkpoint: Checkpoint) -> list[Golden]:
    if checkpoint.task == "text":
        inputs: Sequence[str] = _steady(checkpoint, GOLDEN_TEXTS)[:NUM_GOLDEN]
        logits = text_logits(checkpoint, inputs)
    else:
        images = drawn_images(NUM_GOLDEN)
        inputs = [_png(image) for image in images]
        logits = image_logits(checkpoint, images)
    return [
        Golden(item, [round(float(value), 5) for value in row])
        for item, row in zip(inputs, logits, strict=True)
    ]


def _steady(checkpoint: Checkpoint, texts: Sequence[str]) -> list[str]:
    """The texts, those first whose routing is least likely to tip over under another dtype's rounding."""
    model = checkpoint.model
    assert isinstance(model, FewshardTextForSequenceClassification)
    if not model.config.num_experts:
        return list(texts)
    tokenizer = AutoTokenizer.from_pretrained(checkpoint.directory)
    return sorted(texts, key=lambda text: -routing_margin(model, tokenize(tokenizer, [text])[0]))


def routing_margin(model: FewshardTextForSequenceClassification, token_ids: Sequence[int]) -> float:
    """The smallest gap between the two best router probabilities over the item's tokens and all layers."""
    gaps = []
    for layer, inputs in zip(model.layers, ffn_inputs(model, [token_ids]), strict=True):
        router = cast(MoeFeedForward, layer.ffn).router.detach().float()
        best = (inputs.float() @ router.T).softmax(dim=-1).topk(2).values
        gaps.append(float((best[:, 0] - best[:, 1]).min()))
    return min(gaps)


def drawn_images(count: int, size: int = 32) -> list[NDArray[np.uint8]]:
    """Deterministic pictures of our own: a coloured ellipse on a gradient, different in each."""
    y, x = np.mgrid[0:size, 0:size] / size
    images = []
    for index in range(count):
        rng = np.random.default_rng(index)
        sky, ground, shape = rng.integers(0, 256, (3, 3))
        image = sky * (1 - y[..., None]) + ground * y[..., None]
        (cx, cy), (rx, ry) = rng.uniform(0.3, 0.7, 2), rng.uniform(0.15, 0.4, 2)
        image[((x - cx) / rx) ** 2 + ((y - cy) / ry) ** 2 < 1] = shape
        images.append(image.round().astype(np.uint8))
    return images


def _png(image: NDArray[np.uint8]) -> str:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, format="PNG")
    return base64.b64encode(buffer.getvalue()).decode()
