"""Records label shares and confidence on the held-out set in the card; the server compares its traffic."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fewshard_models.card import load_card
from fewshard_models.classifier.load import load
from fewshard_models.errors import CheckpointError
from fewshard_models.evaluation.tasks import held_out


def write_served(directory: Path, bounds: Sequence[float], limit: int | None = None) -> dict[str, Any]:
    """Run the checkpoint over its held-out set, and write the shares to its card's `extra["served"]`.

    Raises CheckpointError without a card, or if the model does not choose one of several labels.
    """
    card = load_card(directory)
    if card is None:
        raise CheckpointError(f"{directory} has no card.json to write into")
    model = load(directory, "cpu", "fp32")
    info = model.info
    if len(info.labels) < 2 or info.problem_type != "single_label_classification":
        raise CheckpointError(f"{directory} does not choose one of several labels")
    logits = model(held_out(info.task, limit).inputs).logits
    served = served_of(logits, info.labels, bounds)
    replace(card, extra={**card.extra, "served": served}).save(directory)
    return served


def served_of(
    logits: NDArray[np.float32], names: Sequence[str], bounds: Sequence[float]
) -> dict[str, dict[str, float]]:
    """Return shares by label for logits [N, C].

    Also the share of items whose best probability is at or below each bound.
    """
    best = 1 / np.exp(logits.astype(np.float64) - logits.max(axis=1, keepdims=True)).sum(axis=1)
    shares: Counter[str] = Counter(dict.fromkeys(names, 0))
    shares.update(names[label] for label in logits.argmax(axis=1))
    return {
        "labels": {name: round(count / len(logits), 5) for name, count in shares.items()},
        "confidence": {str(bound): round(float((best <= bound).mean()), 5) for bound in bounds},
    }
