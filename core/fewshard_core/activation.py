"""Turns logits into scores, according to the checkpoint's `problem_type`; every protocol uses it."""

import numpy as np
from numpy.typing import NDArray

from fewshard_core.values import ModelInfo, ProblemType

Floats = NDArray[np.float32]


def activate(logits: Floats, problem_type: ProblemType) -> Floats:
    """Scores [N, C] from fp32 logits [N, C].

    Regression: unchanged. Multi-label, or exactly one label: sigmoid. Otherwise: softmax.
    """
    if problem_type == "regression":
        return logits
    if problem_type == "multi_label_classification" or logits.shape[1] == 1:
        return sigmoid(logits)
    return softmax(logits)


def sigmoid(logits: Floats) -> Floats:
    """1 / (1 + exp(-x)), computed with exponents that are never positive, so that nothing overflows."""
    small = np.exp(-np.abs(logits))
    scores: Floats = np.where(logits >= 0, 1, small) / (1 + small)
    return scores


def softmax(logits: Floats) -> Floats:
    """exp(x) / sum(exp(x)) along the last axis, shifted by the row's largest logit."""
    raised = np.exp(logits - logits.max(axis=-1, keepdims=True))
    normalised: Floats = raised / raised.sum(axis=-1, keepdims=True)
    return normalised


THRESHOLD = 0.5
"""The score from which an item has a label, where the labels are independent and no threshold is set."""


def assigned(scores: Floats, info: ModelInfo) -> NDArray[np.bool_]:
    """Whether each item has each label, bool [N, C], from scores [N, C] of independent labels."""
    limits = np.asarray(info.thresholds or THRESHOLD, dtype=np.float32)
    found: NDArray[np.bool_] = scores >= limits
    return found
