"""The classification loss for each `problem_type`. Used by every model of this package."""

import torch.nn.functional as F
from torch import Tensor
from transformers import PreTrainedConfig


def classification_loss(
    logits: Tensor, labels: Tensor, config: PreTrainedConfig, smoothing: float = 0.0
) -> Tensor:
    """The mean loss of `logits` [N, C].

    Squared error for regression, binary cross-entropy for multi-label classification (labels [N, C]), else
    cross-entropy with label `smoothing` (labels int64 [N]).
    """
    if config.problem_type == "regression":
        return F.mse_loss(logits.squeeze(-1), labels.float())
    if config.problem_type == "multi_label_classification":
        return F.binary_cross_entropy_with_logits(logits, labels.float())
    return F.cross_entropy(logits, labels, label_smoothing=smoothing)
