"""Observation of text encoders: feed-forward inputs and units on a sample, and routing during training.

`ffn_inputs` and `ffn_units` serve pruning and the making of experts. `RouterMonitor` warns when the routing
of an MoE model collapses; `recipes/distillation` calls it.
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
    """The inputs of each layer's feed-forward network, fp32 [T, H], on the tokenised sample."""
    return _record(model, sample, lambda layer: layer.ffn, lambda inputs, _: inputs[0])


def ffn_units(model: Text, sample: Sequence[Sequence[int]]) -> list[Tensor]:
    """The activated hidden units of each dense layer, fp32 [T, intermediate_size]."""
    return _record(model, sample, lambda layer: layer.ffn.down, lambda inputs, _: inputs[0])


def importance(units: Tensor, down: Tensor) -> Tensor:
    """The effect of each unit on the layer's output, fp32 [I]: its mean absolute value over `units` [T, I]
    times the norm of its column in `down` [H, I]."""
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
    """Sums the routing over `every` steps, then reports starving experts.

    An expert starves below `min_share` of its fair share (1 / num_experts); without any rows it is dead.
    """

    def __init__(
        self, every: int = 200, min_share: float = 0.2, say: Callable[[str], None] = tqdm.write
    ) -> None:
        self.every, self.min_share, self.say = every, min_share, say
        self._seen: list[tuple[Tensor, Tensor, Tensor]] = []

    def see(self, moe_stats: Sequence[MoeStats]) -> None:
        """Add one step's statistics, one entry per MoE layer; empty for a dense model."""
        if not moe_stats:
            return
        rows = torch.stack([stats.expert_rows for stats in moe_stats])
        # A token's probabilities sum to one, so their total is the number of tokens for any top_k.
        tokens = torch.stack([stats.expert_probability.detach().sum() for stats in moe_stats])
        entropy = torch.stack([stats.entropy.detach() for stats in moe_stats])
        self._seen.append((rows, tokens, entropy))
        if len(self._seen) == self.every:
            for line in self.findings():
                self.say(line)
            self._seen.clear()

    def findings(self) -> list[str]:
        """A line for each layer with a starving expert, over the steps since the last report."""
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
