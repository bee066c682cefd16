"""Runs a checkpoint's golden inputs before it takes traffic; called by every model's `self_check`."""

import base64

import numpy as np

from fewshard_models.card import Card
from fewshard_serve.backends.base import Model
from fewshard_serve.core import EncodedImage, Input, TextInput
from fewshard_serve.errors import NotReady

TOLERANCE = {"fp32": 1e-4, "bf16": 6e-2, "fp16": 2e-2}
"""How far a logit may stray from the fp32 golden one, by the dtype that serves."""


def check_golden(model: Model, card: Card | None) -> None:
    """Compare the model's answers with the card's. Raises NotReady naming the worst difference."""
    if card is None or not card.golden:
        return
    inputs: list[Input] = [
        TextInput(golden.input) if card.task == "text" else EncodedImage(base64.b64decode(golden.input))
        for golden in card.golden
    ]
    expected = np.array([golden.logits for golden in card.golden], dtype=np.float32)
    logits = model.run(model.prepare(inputs)).logits
    worst = float(np.abs(logits - expected).max()) if logits.shape == expected.shape else float("inf")
    if not worst <= TOLERANCE[model.info.dtype]:
        raise NotReady(
            f"model {model.info.name!r} answers its golden inputs wrongly: a logit is off by {worst:.3g}, "
            f"more than {TOLERANCE[model.info.dtype]} ({model.info.dtype}); its weights are damaged or a "
            "kernel is broken on this device: copy the checkpoint again, or try dtype fp32"
        )
