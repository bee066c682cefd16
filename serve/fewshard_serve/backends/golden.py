"""Runs a checkpoint's golden inputs before it takes traffic; called by every model's `self_check`."""

import base64
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from fewshard_core.values import EncodedImage, Input, ModelInfo, TextInput
from fewshard_models.card import Card
from fewshard_serve.errors import NotReady
from fewshard_serve.model import Model

Classify = Callable[[Sequence[Input]], NDArray[np.float32]]

TOLERANCE = {"fp32": 1e-4, "bf16": 6e-2, "fp16": 2e-2}
"""How far a logit may stray from the fp32 golden one, by the dtype that serves."""


def check_golden(model: Model, card: Card | None) -> None:
    """Compare the model's answers with the card's. Raises NotReady naming the worst difference."""
    problem = golden_problem(model.info, card, lambda inputs: model.run(model.prepare(inputs)).logits)
    if problem:
        raise NotReady(problem)


def golden_problem(info: ModelInfo, card: Card | None, classify: Classify) -> str:
    """What is wrong with the answers of `classify` to the card's inputs; "" where nothing is."""
    if card is None or not card.golden:
        return ""
    inputs: list[Input] = [
        TextInput(golden.input) if card.task == "text" else EncodedImage(base64.b64decode(golden.input))
        for golden in card.golden
    ]
    expected = np.array([golden.logits for golden in card.golden], dtype=np.float32)
    logits = classify(inputs)
    worst = float(np.abs(logits - expected).max()) if logits.shape == expected.shape else float("inf")
    if worst <= TOLERANCE[info.dtype]:
        return ""
    return (
        f"model {info.name!r} answers its golden inputs wrongly: a logit is off by {worst:.3g}, "
        f"more than {TOLERANCE[info.dtype]} ({info.dtype}); its weights are damaged or a "
        "kernel is broken on this device: copy the checkpoint again, or try dtype fp32"
    )
