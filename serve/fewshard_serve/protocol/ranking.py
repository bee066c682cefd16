"""The labels of items, ranked by their scores; the protocols that answer in JSON use it."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fewshard_core.activation import activate
from fewshard_core.values import ModelInfo


def ranked_scores(
    logits: NDArray[np.float32], info: ModelInfo, raw_scores: bool | None, top_k: int | None = None
) -> list[list[dict[str, Any]]]:
    """The labels of each item with their scores, the best first."""
    return rank(logits if raw_scores else activate(logits, info.problem_type), info.labels, top_k)


def rank(scores: NDArray[np.float32], labels: Sequence[str], top_k: int | None) -> list[list[dict[str, Any]]]:
    """The best `top_k` labels of each item with these scores [N, C], the best first; all if it is None."""
    order = np.argsort(-scores, axis=1, kind="stable")[:, :top_k]
    ranked = np.sort(scores, axis=1)[:, ::-1][:, :top_k].tolist()
    return [
        [{"label": labels[index], "score": score} for index, score in zip(best, row, strict=True)]
        for best, row in zip(order.tolist(), ranked, strict=True)
    ]
