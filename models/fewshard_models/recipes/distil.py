"""Distillation of a text classifier: the teacher's logits and pooled states, computed once, then imitated."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fewshard_models.recipes.texts import TextBatch, over_all
from fewshard_models.text import FewshardTextForSequenceClassification, PackedOutput, PackedTokens


@dataclass(frozen=True, slots=True)
class Targets:
    """The teacher's answer to each training text: `logits` fp32 [N, C], `pooled` fp16 [N, num_targets, H]."""

    logits: Tensor
    pooled: Tensor


def pool_items(hidden: Tensor, packed: PackedTokens) -> Tensor:
    """The mean of each item's tokens: [T, H] to fp32 [num_items, H]."""
    lengths = packed.lengths_tensor
    owners = torch.arange(len(lengths), device=hidden.device).repeat_interleave(lengths)
    sums = torch.zeros(len(lengths), hidden.shape[1], device=hidden.device)
    return sums.index_add(0, owners, hidden.float()) / lengths[:, None]


def teach(
    teacher: FewshardTextForSequenceClassification, token_ids: list[list[int]], layers: Sequence[int]
) -> Targets:
    """The teacher's targets; `layers` index its hidden states, 0 being the embeddings."""

    def answer(packed: PackedTokens, out: PackedOutput) -> Tensor:
        pooled = torch.stack([pool_items(out.hidden_states[layer], packed) for layer in layers], dim=1)
        return torch.cat([out.logits, pooled.flatten(1)], dim=1).half()

    answers = over_all(teacher, token_ids, answer)
    num_labels = teacher.config.num_labels
    return Targets(answers[:, :num_labels].float(), answers[:, num_labels:].unflatten(1, (len(layers), -1)))


def distillation_loss(
    targets: Targets, temperature: float = 2.0, label_weight: float = 0.2, pooled_weight: float = 1.0
) -> Callable[[nn.Module, TextBatch], Tensor]:
    """A loss of (student, batch): KL to the teacher at `temperature` (Hinton et al. 2015), cross-entropy to
    the label, and the distance of normalised pooled states, student layer i to target i.

    States are compared after pooling because teacher and student may split words into different pieces.
    """

    def loss_of(student: nn.Module, batch: TextBatch) -> Tensor:
        assert isinstance(student, FewshardTextForSequenceClassification)
        out = student.forward_packed(batch.packed)
        wanted = targets.logits[batch.rows]
        kl = F.kl_div(
            F.log_softmax(out.logits / temperature, dim=-1),
            F.log_softmax(wanted / temperature, dim=-1),
            log_target=True,
            reduction="batchmean",
        )
        loss = kl * temperature**2 + label_weight * F.cross_entropy(out.logits, batch.labels)
        pooled = torch.stack([pool_items(h, batch.packed) for h in out.hidden_states[1:]], dim=1)
        distance = 1 - F.cosine_similarity(pooled, targets.pooled[batch.rows].float(), dim=-1)
        return loss + pooled_weight * distance.mean() + student.router_loss(out.moe_stats)

    return loss_of
