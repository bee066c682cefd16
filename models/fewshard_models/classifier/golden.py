"""Compares a classifier's answers with the golden ones on its checkpoint's card."""

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from fewshard_core.formats import FORMATS
from fewshard_core.values import Input, ModelInfo
from fewshard_models.card import Card
from fewshard_models.classifier.base import Classifier, Preprocessor
from fewshard_models.errors import CheckpointError

Classify = Callable[[Sequence[Input]], NDArray[np.float32]]


def check_golden(model: Classifier, card: Card | None) -> None:
    """Run the card's golden inputs. Raises CheckpointError naming the worst difference."""
    problem = golden_problem(
        model.info, card, model.preprocessor, lambda inputs: model.run(model.prepare(inputs)).logits
    )
    if problem:
        raise CheckpointError(problem)


def golden_problem(info: ModelInfo, card: Card | None, preprocessor: Preprocessor, classify: Classify) -> str:
    """Return what is wrong with the answers of `classify` to the card's inputs; "" if nothing."""
    if card is None or not card.golden:
        return ""
    inputs = [preprocessor.from_card(golden.input) for golden in card.golden]
    expected = np.array([golden.logits for golden in card.golden], dtype=np.float32)
    logits = classify(inputs)
    worst = float(np.abs(logits - expected).max()) if logits.shape == expected.shape else float("inf")
    tolerance = max(FORMATS[each].tolerance for each in {info.dtype, _own_format(card) or info.dtype})
    if worst <= tolerance:
        return ""
    return (
        f"model {info.name!r} answers its golden inputs wrongly: a logit is off by {worst:.3g}, "
        f"more than {tolerance} ({info.dtype}); its weights are damaged or a "
        "kernel is broken on this device: copy the checkpoint again, or try dtype fp32"
    )


def _own_format(card: Card) -> str:
    """Return the format of the checkpoint's weights, in which its golden answers were given; "" if plain."""
    quantised = card.extra.get("quantised")
    name = quantised.get("format") if isinstance(quantised, dict) else None
    return name if name in FORMATS.names else ""
