"""Accuracy of a saved checkpoint on its task's held-out set, and the card that records it."""

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
from torch import Tensor
from transformers import AutoTokenizer, PreTrainedConfig

from fewshard_core.values import Item, TextInput
from fewshard_models.card import Card, Golden, commit
from fewshard_models.checkpoint import Checkpoint, load_config
from fewshard_models.classifier.load import load
from fewshard_models.classifier.network import NetworkClassifier
from fewshard_models.counting import count_macs, count_parameters, macs_input
from fewshard_models.data.sst2 import load_sst2
from fewshard_models.evaluation import metrics
from fewshard_models.evaluation.tasks import held_out, label_order
from fewshard_models.quantised import own_format
from fewshard_models.sparsify.observers import ffn_inputs
from fewshard_models.sparsify.report import load_report
from fewshard_models.text import FewshardTextForSequenceClassification, PackedOutput, PackedTokens
from fewshard_models.text.feed_forward import MoeFeedForward
from fewshard_models.text.inference import over_all, tokenize

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
    """Predictions on a held-out set.

    predictions, labels: int64 [N].
    f1: mean over the classes.
    """

    dataset: str
    predictions: NDArray[np.int64]
    labels: NDArray[np.int64]

    @property
    def accuracy(self) -> float:
        return metrics.accuracy(self.predictions, self.labels)

    @property
    def f1(self) -> float:
        return metrics.macro_f1(self.predictions, self.labels)


def evaluate(directory: Path, limit: int | None = None) -> Evaluation:
    """Run a checkpoint over SST-2's dev set or CIFAR-10's test set (no test-time augmentation).

    It runs in fp32, or in the 8 bits that it is stored in.
    """
    model = _load_exact(directory)
    test = held_out(model.info.task, limit)
    order = label_order(model.checkpoint, test.names)
    logits = model(test.inputs).logits[:, order]
    return Evaluation(test.dataset, logits.argmax(axis=1), test.labels)


def _load_exact(directory: Path) -> NetworkClassifier:
    return load(directory, "cpu", own_format(load_config(directory)) or "fp32")


def write_card(
    directory: Path,
    name: str,
    recipe: str,
    seed: int,
    limit: int | None = None,
    unmeasured: str | None = None,
) -> Card:
    """Evaluate the saved checkpoint, count it, record its golden answers, and write `card.json`.

    unmeasured: the reason why accuracy would be meaningless; then it is not measured.
    """
    evaluation = evaluate(directory, limit) if unmeasured is None else None
    model = _load_exact(directory)
    checkpoint = model.checkpoint
    parameters = count_parameters(checkpoint.model)
    config = checkpoint.model.config
    weights = [p for p in checkpoint.model.parameters() if p.ndim > 1]
    zeros = sum(int((p == 0).sum()) for p in weights) / sum(p.numel() for p in weights)
    card = Card(
        name=name,
        task=checkpoint.task,
        kind=kind_of(config),
        dataset=evaluation.dataset if evaluation else "none",
        accuracy=round(evaluation.accuracy, 5) if evaluation else None,
        f1=round(evaluation.f1, 5) if evaluation else None,
        num_examples=len(evaluation.labels) if evaluation else 0,
        seed=seed,
        parameters_total=parameters.total,
        parameters_active=parameters.active,
        macs=count_macs(config),
        macs_input=macs_input(config),
        sparsity=round(zeros, 4),
        recipe=recipe,
        commit=commit(),
        golden=_golden(model),
        extra=_extra(checkpoint, limit, unmeasured) | _sparsified(directory),
    )
    card.save(directory)
    return card


def kind_of(config: PreTrainedConfig) -> str:
    """Return "moe", "static", "dynamic" or "dense"."""
    if getattr(config, "num_experts", 0):
        return "moe"
    return getattr(config, "sparsity_kind", None) or "dense"


def _sparsified(directory: Path) -> dict[str, Any]:
    """Return the checkpoint's size relative to its source, if a sparsifier wrote a report."""
    report = load_report(directory)
    if report is None:
        return {}
    shares = {"macs_share": round(report.macs_share, 4), "density": round(report.density, 4)}
    return {"sparsified": {"method": report.method, **shares}}


def _extra(checkpoint: Checkpoint, limit: int | None, unmeasured: str | None) -> dict[str, Any]:
    if unmeasured is not None:
        return {"accuracy": unmeasured}
    if not getattr(checkpoint.model.config, "num_experts", 0):
        return {}
    tokenizer = AutoTokenizer.from_pretrained(checkpoint.directory)
    assert isinstance(checkpoint.model, FewshardTextForSequenceClassification)
    return {"routing": routing_shares(checkpoint.model, tokenize(tokenizer, load_sst2("dev")[0][:limit]))}


def routing_shares(
    model: FewshardTextForSequenceClassification, token_ids: Sequence[Sequence[int]]
) -> dict[str, Any]:
    """Return routing statistics over these texts.

    For each layer: the share of the rows that each expert gets, and the router's mean entropy as a share of
    the largest possible. In total: the number of experts that get none.
    """
    batches: list[Tensor] = []

    def note(_: PackedTokens, out: PackedOutput) -> Tensor:
        batches.append(torch.stack([torch.cat([s.expert_rows, s.entropy[None]]) for s in out.moe_stats]))
        return out.logits

    over_all(model, token_ids, note)
    stats = torch.stack(batches).sum(dim=0)
    rows, entropy = stats[:, :-1], stats[:, -1]
    shares = rows / rows.sum(dim=1, keepdim=True)
    tokens = rows.sum(dim=1) / model.config.num_experts_per_tok
    levels = entropy / tokens / np.log(model.config.num_experts)
    return {
        "share": [[round(value, 4) for value in layer] for layer in shares.tolist()],
        "entropy": [round(value, 4) for value in levels.tolist()],
        "dead_experts": int((rows == 0).sum()),
    }


def _golden(model: NetworkClassifier) -> list[Golden]:
    stored = _GOLDEN_INPUTS[model.info.task](model)
    logits = model([model.preprocessor.from_card(each) for each in stored]).logits
    return [
        Golden(each, [round(float(value), 5) for value in row])
        for each, row in zip(stored, logits, strict=True)
    ]


def _steady_texts(model: NetworkClassifier) -> list[str]:
    """Return the texts whose routing is least likely to change under another dtype's rounding."""
    if not getattr(model.network.config, "num_experts", 0):
        return list(GOLDEN_TEXTS[:NUM_GOLDEN])
    ids = {
        text: item.features.ids for text, item in zip(GOLDEN_TEXTS, _items(model, GOLDEN_TEXTS), strict=True)
    }
    return sorted(GOLDEN_TEXTS, key=lambda text: -routing_margin(model.network, ids[text]))[:NUM_GOLDEN]


def _items(model: NetworkClassifier, texts: Sequence[str]) -> list[Item]:
    return model.prepare([TextInput(text) for text in texts])


def routing_margin(model: FewshardTextForSequenceClassification, token_ids: Sequence[int]) -> float:
    """Return the smallest gap between the two best router probabilities, over all layers.

    Each layer routes the item's tokens, or the whole item.
    """
    gaps = []
    inputs_of_layers = ffn_inputs(model, [token_ids])
    for index in model.config.expert_layers:
        inputs = inputs_of_layers[index]
        router = cast(MoeFeedForward, model.layers[index].ffn).router.detach().float()
        routed = (
            inputs.float().mean(dim=0, keepdim=True) if model.config.routing == "request" else inputs.float()
        )
        best = (routed @ router.T).softmax(dim=-1).topk(2).values
        gaps.append(float((best[:, 0] - best[:, 1]).min()))
    return min(gaps)


def drawn_images(count: int, size: int = 32) -> list[NDArray[np.uint8]]:
    """Return deterministic images, free of rights: a coloured ellipse on a gradient, each different."""
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


def _drawn_files(_: NetworkClassifier) -> list[str]:
    """Return PNG files in base64."""
    return [_png(image) for image in drawn_images(NUM_GOLDEN)]


def _png(image: NDArray[np.uint8]) -> str:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, format="PNG")
    return base64.b64encode(buffer.getvalue()).decode()


_GOLDEN_INPUTS = {"text": _steady_texts, "image": _drawn_files}
"""For each task, the function that makes golden inputs in the form in which a card stores them."""
