"""The encoder's linear layer: `nn.Linear` whose weights are packed for oneDNN when it serves on a CPU."""

import torch
from torch import Tensor, nn

from fewshard_kernels import onednn_multiplies
from fewshard_models.fused import Fusable

# Activations that oneDNN applies inside the product, with its name for each and the variant.
_FUSED = {"gelu": ("gelu", "none"), "relu": ("relu", "")}


class PackedLinear:
    """x W^T + b [T, O], with `activation` applied inside the product; a snapshot of the layer's weights."""

    def __init__(self, linear: nn.Linear, activation: str | None) -> None:
        self.weight: Tensor = torch.ops.mkldnn._reorder_linear_weight(linear.weight.detach().contiguous())
        self.bias = None if linear.bias is None else linear.bias.detach()
        self.kind, self.variant = ("none", "") if activation is None else _FUSED[activation]

    def __call__(self, x: Tensor) -> Tensor:
        out: Tensor = torch.ops.mkldnn._linear_pointwise(
            x, self.weight, self.bias, self.kind, [], self.variant
        )
        return out


class Linear(nn.Linear, Fusable[PackedLinear]):
    """As `nn.Linear`. Packed products read bf16 weights up to twice as fast (docs/log.md); fp32 ones stay."""

    def forward(self, x: Tensor) -> Tensor:
        packed = self.usable
        return super().forward(x) if packed is None else packed(x)

    def pack(self, activation: str | None = None) -> bool:
        """Pack where that is faster, with `activation` inside where oneDNN has it; whether it is inside."""
        if self.weight.device.type != "cpu" or self.weight.dtype not in (torch.bfloat16, torch.float16):
            return False
        if not onednn_multiplies(self.weight.dtype):
            return False
        inside = activation if activation in _FUSED else None
        self.fused = PackedLinear(self, inside)
        return inside is not None
