"""Layers of the text encoder: linear layers packed for a CPU, fast dropout, and the choice of experts.

`choose_experts` is for callers that route outside the expert layer.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fewshard_kernels import (
    ONEDNN_ACTIVATIONS,
    Int8Product,
    MoeStats,
    Quantisation,
    Routing,
    onednn_multiplies,
    route_groups,
)
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


class Int8Linear(nn.Module):
    """A `Linear` whose weights and inputs are coded in 8 bits; for inference on a CPU, after `pack`.

    weight: int8 [O, I], without a gradient; a weight is its number times its row's `scale`, fp32 [O].
    rows: the code of the input. A uint8 input is coded in it already.
    dtype: of the output, unless the next layer takes codes.
    feeds: the code in which the next layer takes the activated output, or None.
    """

    scale: Tensor

    def __init__(
        self,
        weight: Tensor,
        scale: Tensor,
        bias: Tensor | None,
        rows: Quantisation,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight, requires_grad=False)
        self.bias = None if bias is None else nn.Parameter(bias, requires_grad=False)
        self.register_buffer("scale", scale, persistent=False)
        self.rows, self.dtype = rows, dtype
        self.feeds: Quantisation | None = None
        self.usable: Int8Product | None = None

    def pack(self, activation: str | None = None) -> bool:
        """Pack the weights, and fuse `activation` if oneDNN can; returns whether it is fused."""
        inside = activation if activation in ONEDNN_ACTIVATIONS else None
        out = self.dtype if self.feeds is None or inside != activation else self.feeds
        self.usable = Int8Product(self.weight.detach(), self.scale, self.bias, self.rows, out, inside)
        return inside is not None

    def forward(self, x: Tensor) -> Tensor:
        assert self.usable is not None
        return self.usable(x if x.dtype == torch.uint8 else self.rows.encode(x))


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
