"""Watches the routing while an MoE model trains, and says aloud when it collapses; for `recipes/distil`."""

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from tqdm import tqdm

from fewshard_kernels import MoeStats


class RoutingWatch:
    """Sums up the routing of `every` steps, then says which experts starved.

    An expert starves below `min_share` of its fair share (1 / num_experts); without any row it is dead.
    """

    def __init__(
        self, every: int = 200, min_share: float = 0.2, say: Callable[[str], None] = tqdm.write
    ) -> None:
        self.every, self.min_share, self.say = every, min_share, say
        self._seen: list[tuple[Tensor, Tensor]] = []

    def see(self, moe_stats: Sequence[MoeStats]) -> None:
        """One step's statistics, one a layer; those of a dense model are none."""
        if not moe_stats:
            return
        rows = torch.stack([stats.expert_rows for stats in moe_stats])
        self._seen.append((rows, torch.stack([stats.entropy.detach() for stats in moe_stats])))
        if len(self._seen) == self.every:
            for line in self.findings():
                self.say(line)
            self._seen.clear()

    def findings(self) -> list[str]:
        """A line for each layer with a starving expert in the steps seen since the last call to `say`."""
        rows = torch.stack([rows for rows, _ in self._seen]).sum(dim=0)
        entropy = torch.stack([entropy for _, entropy in self._seen]).sum(dim=0)
        lines = []
        for layer, (counts, nats) in enumerate(zip(rows, entropy, strict=True)):
            share = counts / counts.sum()
            if starving := torch.nonzero(share * len(share) < self.min_share).flatten().tolist():
                lines.append(_line(layer, share, starving, float(nats / counts.sum())))
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
