"""Layers of the text encoder: linear layers packed for a CPU, fast dropout, and the choice of experts.

`choose_experts` is for callers that route outside the expert layer.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fewshard_kernels import ONEDNN_ACTIVATIONS, MoeStats, Routing, onednn_multiplies, route_groups
from fewshard_models.fused import Fusable
from fewshard_models.text.configuration import FewshardTextConfig
from fewshard_models.text.packing import PackedTokens, mean_of_items

# Activations that are fused into the product; oneDNN's tanh form of GELU is slower fused.
_INSIDE = ("gelu", "relu")


class PackedLinear:
    """x W^T + b [T, O] with a fused `activation`; a snapshot of the layer's weights."""

    def __init__(self, linear: nn.Linear, activation: str | None) -> None:
        self.weight: Tensor = torch.ops.mkldnn._reorder_linear_weight(linear.weight.detach().contiguous())
        self.bias = None if linear.bias is None else linear.bias.detach()
        self.kind, self.variant = ("none", "") if activation is None else ONEDNN_ACTIVATIONS[activation]

    def __call__(self, x: Tensor) -> Tensor:
        out: Tensor = torch.ops.mkldnn._linear_pointwise(
            x, self.weight, self.bias, self.kind, [], self.variant
        )
        return out


class Linear(nn.Linear, Fusable[PackedLinear]):
    """Like `nn.Linear`; packed products read bf16 weights up to twice as fast (docs/log.md). fp32 stays."""

    def forward(self, x: Tensor) -> Tensor:
        packed = self.usable
        return super().forward(x) if packed is None else packed(x)

    def pack(self, activation: str | None = None) -> bool:
        """Pack if that is faster, and fuse `activation` if that pays; returns whether it is fused."""
        if self.weight.device.type != "cpu" or self.weight.dtype not in (torch.bfloat16, torch.float16):
            return False
        if not onednn_multiplies(self.weight.dtype):
            return False
        inside = activation if activation in _INSIDE else None
        self.fused = PackedLinear(self, inside)
        return inside is not None


class Dropout(nn.Module):
    """Like `nn.Dropout` (Srivastava et al. 2014), with `p` rounded to 1/256 on a CPU.

    There each random number supplies eight elements, one byte each. torch draws one number per element, which
    took a fifth of a training step (docs/log.md). Kept elements are scaled by the rounded rate, so the
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


def choose_experts(
    hidden: Tensor, packed: PackedTokens, router: Tensor, config: FewshardTextConfig
) -> tuple[Routing, MoeStats]:
    """The expert choices of every row of `hidden` [T, H], with the statistics.

    With `routing: request`, an item's mean over its tokens makes one choice for all of them, so a batch of
    one item reads `top_k` experts. Otherwise each token chooses.
    """
    if config.routing == "request":
        chooses, sizes = mean_of_items(hidden, packed), packed.lengths_tensor
    else:
        chooses, sizes = hidden, torch.ones(len(hidden), dtype=torch.int64, device=hidden.device)
    top_k, normalize = config.num_experts_per_tok, config.norm_topk_prob
    return route_groups(chooses, sizes, router, top_k=top_k, normalize=normalize)
