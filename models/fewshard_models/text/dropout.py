"""Dropout whose masks cost little on a CPU; used by the text encoder in training."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Dropout(nn.Module):
    """As `nn.Dropout` (Srivastava et al. 2014), with `p` rounded to 1/256 on a CPU.

    One byte an element is drawn there, eight from each random number: torch draws a number an element, which
    took a fifth of a training step (docs/log.md). What is kept is scaled by the rounded rate, so the
    expectation is exact.
    """

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = p

    def forward(self, hidden: Tensor) -> Tensor:
        if not self.training or self.p == 0:
            return hidden
        dropped = round(self.p * 256)
        if hidden.device.type != "cpu" or not 0 < dropped < 256:
            return F.dropout(hidden, self.p)
        kept = random_bytes(hidden.numel())[: hidden.numel()].view(hidden.shape) >= dropped
        return (hidden * kept).mul_(256 / (256 - dropped))

    def extra_repr(self) -> str:
        return f"p={self.p}"


def random_bytes(count: int) -> Tensor:
    """At least `count` uniform bytes, uint8, from torch's global generator."""
    words = torch.empty(-(-count // 8), dtype=torch.int64)
    return words.random_(torch.iinfo(torch.int64).min, None).view(torch.uint8)
