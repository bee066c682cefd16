"""What a text encoder's feed-forward networks see and do on a sample; for pruning and for making experts.

`RouterMonitor` sums up the routing while an MoE model trains, and warns when it collapses;
`recipes/distillation` calls it.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from fewshard_kernels import MoeStats
from fewshard_models.text import FewshardTextForSequenceClassification, pack

Text = FewshardTextForSequenceClassification


def ffn_inputs(model: Text, sample: Sequence[Sequence[int]]) -> list[Tensor]:
    """What enters each layer's feed-forward network, fp32 [T, H], over the tokenised sample."""
    return _record(model, sample, lambda layer: layer.ffn, lambda inputs, _: inputs[0])


def ffn_units(model: Text, sample: Sequence[Sequence[int]]) -> list[Tensor]:
    """The activated hidden units of each dense layer, fp32 [T, intermediate_size]."""
    return _record(model, sample, lambda layer: layer.ffn.down, lambda inputs, _: inputs[0])


def importance(units: Tensor, down: Tensor) -> Tensor:
    """How much each unit moves the layer's output: its mean size over `units` [T, I] times the norm of its
    column in `down` [H, I]; fp32 [I]."""
    sizes: Tensor = units.abs().mean(dim=0) * down.norm(dim=0)
    return sizes


def _record(model: Text, sample: Sequence[Sequence[int]], where: Any, what: Any) -> list[Tensor]:
    seen: list[Tensor] = []
    hooks = [
        where(layer).register_forward_hook(
            lambda _, inputs, output: seen.append(what(inputs, output).detach())
        )
        for layer in model.layers
    ]
    device = next(model.parameters()).device
    with torch.inference_mode():
        model.eval().forward_packed(pack(list(sample), None, device))
    for hook in hooks:
        hook.remove()
    return [tensor.clone() for tensor in seen]


class RouterMonitor:
    """Sums up the routing of `every` steps, then says which experts starved.

    An expert starves below `min_share` of its fair share (1 / num_experts); without any row it is dead.
    """

    def __init__(
        self, every: int = 200, min_share: float = 0.2, say: Callable[[str], None] = tqdm.write
    ) -> None:
        self.every, self.min_share, self.say = every, min_share, say
        self._seen: list[tuple[Tensor, Tensor, Tensor]] = []

    def see(self, moe_stats: Sequence[MoeStats]) -> None:
        """One step's statistics, one a layer; those of a dense model are none."""
        if not moe_stats:
            return
        rows = torch.stack([stats.expert_rows for stats in moe_stats])
        # A token's probabilities add up to one: their sum is the number of tokens, whatever top_k is.
        tokens = torch.stack([stats.expert_probability.detach().sum() for stats in moe_stats])
        entropy = torch.stack([stats.entropy.detach() for stats in moe_stats])
        self._seen.append((rows, tokens, entropy))
        if len(self._seen) == self.every:
            for line in self.findings():
                self.say(line)
            self._seen.clear()

    def findings(self) -> list[str]:
        """A line for each layer with a starving expert in the steps seen since the last call to `say`."""
        rows, tokens, entropy = (torch.stack(parts).sum(dim=0) for parts in zip(*self._seen, strict=True))
        lines = []
        for layer, (counts, nats) in enumerate(zip(rows, entropy / tokens, strict=True)):
            share = counts / counts.sum()
            if starving := torch.nonzero(share * len(share) < self.min_share).flatten().tolist():
                lines.append(_line(layer, share, starving, float(nats)))
        return lines


def _line(layer: int, share: Tensor, starving: list[int], entropy: float) -> str:
    experts = ", ".join(
        f"expert {expert} is dead" if share[expert] == 0 else f"expert {expert} gets {share[expert]:.1%}"
        for expert in starving
    )
    level = entropy / math.log(len(share))
    return (
        f"routing collapses in layer {layer}: {experts} (fair share {1 / len(share):.1%}, "
        f"router entropy {level:.0%} of the maximum); raise router_aux_loss_coef or use fewer experts"
    )
