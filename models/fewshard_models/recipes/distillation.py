"""Distillation of a text classifier: targets (teachers' logits and pooled states, computed once) and loss."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fewshard_models.devices import choose_dtype, training_device
from fewshard_models.recipes.texts import TextBatch
from fewshard_models.sparsify.observers import RouterMonitor
from fewshard_models.text import FewshardTextForSequenceClassification, PackedOutput, PackedTokens
from fewshard_models.text.inference import over_all
from fewshard_models.text.packing import mean_of_items


@dataclass(frozen=True, slots=True)
class Targets:
    """The teacher's outputs for N training texts.

    logits: fp32 [N, C].
    pooled: fp16 [N, num_states, H], hidden states averaged over each text's tokens.
    """

    logits: Tensor
    pooled: Tensor

    def of_states(self, indices: Sequence[int]) -> "Targets":
        """The same targets with these states only."""
        return Targets(self.logits, self.pooled[:, list(indices)])


def teach(
    teacher: FewshardTextForSequenceClassification, token_ids: list[list[int]], states: Sequence[int]
) -> Targets:
    """The teacher's targets, computed in bf16 where that is faster.

    `states` index its hidden states (0: the embeddings).
    """

    def answer(packed: PackedTokens, out: PackedOutput) -> Tensor:
        pooled = [mean_of_items(out.hidden_states[state], packed) for state in states]
        return torch.cat([out.logits, *pooled], dim=1).half()

    device = training_device()
    bf16 = choose_dtype(device=device.type).name == "bf16"
    answers = over_all(teacher.to(device), token_ids, answer, autocast=bf16)
    num_labels = teacher.config.num_labels
    pooled = answers[:, num_labels:].unflatten(1, (len(states), teacher.config.hidden_size))
    return Targets(answers[:, :num_labels].float(), pooled)


def mean_targets(answers: Sequence[Targets]) -> Targets:
    """The mean logits of several teachers (an ensemble, Hinton et al. 2015), with the first one's states."""
    return Targets(torch.stack([answer.logits for answer in answers]).mean(dim=0), answers[0].pooled)


def distillation_loss(
    targets: Targets,
    watch: RouterMonitor,
    *,
    temperature: float,
    label_weight: float,
    state_weight: float,
) -> Callable[[nn.Module, TextBatch], Tensor]:
    """A loss function of (student, batch). It is the sum of:

    - KL divergence to the teacher at `temperature` (Hinton et al. 2015);
    - cross-entropy to the labels, where there are any, times `label_weight`;
    - cosine distance between pooled states, student layer i to state i, times `state_weight`;
    - the student's router losses.

    States are compared after pooling because teacher and student may tokenise words differently.
    """

    def loss_of(student: nn.Module, batch: TextBatch) -> Tensor:
        assert isinstance(student, FewshardTextForSequenceClassification)
        out = student.forward_packed(batch.packed)
        watch.see(out.moe_stats)
        wanted = targets.logits[batch.rows].to(out.logits.device)
        kl = F.kl_div(
            F.log_softmax(out.logits / temperature, dim=-1),
            F.log_softmax(wanted / temperature, dim=-1),
            log_target=True,
            reduction="batchmean",
        )
        loss = kl * temperature**2 + label_weight * _label_loss(out.logits, batch.labels)
        if targets.pooled.shape[1]:
            pooled = torch.stack([mean_of_items(h, batch.packed) for h in out.hidden_states[1:]], dim=1)
            imitated = targets.pooled[batch.rows].to(pooled.device).float()
            loss = loss + state_weight * (1 - F.cosine_similarity(pooled, imitated, dim=-1)).mean()
        return loss + student.router_loss(out.moe_stats)

    return loss_of


def _label_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy of the labelled items, divided by the number of all items."""
    return F.cross_entropy(logits, labels, reduction="sum") / len(labels)
