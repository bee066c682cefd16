"""Argument types and activations of `moe_ffn`, shared by all its implementations.

Activation names are those of transformers. `add_and_norm` is the last step of every torch implementation:
residual and LayerNorm in fp32; the caller then rounds once.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor


def _gelu_tanh(x: Tensor) -> Tensor:
    return F.gelu(x, approximate="tanh")


ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu": F.gelu,
    "gelu_pytorch_tanh": _gelu_tanh,
    "relu": torch.relu,
    "silu": F.silu,
}


def activate(projected: Tensor, activation: str, gated: bool, dim: int = -1) -> Tensor:
    """act(projected); if `gated`, act(gate) * up, where `projected` holds gate and up along `dim` (2I)."""
    if not gated:
        return ACTIVATIONS[activation](projected)
    gate, up = projected.chunk(2, dim=dim)
    return ACTIVATIONS[activation](gate) * up


SCORINGS = ("softmax", "topk_softmax", "sigmoid")


class ExpertWeights(NamedTuple):
    """The experts of one layer, all in one dtype.

    w1: [E, I, H]; for gated experts [E, 2I, H], the I rows of the gate first.
    b1: [E, I] ([E, 2I] if gated) or None.
    w2: [E, H, I].
    b2: [E, H] or None.
    """

    w1: Tensor
    b1: Tensor | None
    w2: Tensor
    b2: Tensor | None

    @property
    def num_experts(self) -> int:
        return self.w1.shape[0]


class Routing(NamedTuple):
    """A routing computed elsewhere.

    weights: [T, k], any floating dtype, used without further scaling.
    experts: [T, k], int32 or int64, each from 0 to E - 1.
    """

    weights: Tensor
    experts: Tensor


class LayerNormWeights(NamedTuple):
    """A LayerNorm over H (Ba et al. 2016).

    weight: [H], any floating dtype.
    bias: [H] in any floating dtype, or None.
    eps: added to the variance.
    """

    weight: Tensor
    bias: Tensor | None
    eps: float


@dataclass(frozen=True, slots=True, eq=False)
class MoeOptions:
    """The options of `moe_ffn`, as documented there.

    They are checked before an implementation receives them: names, shapes, dtypes and devices fit. With a
    given routing, `top_k` is the number of experts in it.
    """

    top_k: int = 1
    activation: str = "gelu"
    gated: bool = False
    scoring: str = "softmax"
    normalize: bool = False
    dropout: float = 0.0
    expert_mask: Tensor | None = None
    residual: Tensor | None = None
    norm: LayerNormWeights | None = None


def add_and_norm(y: Tensor, options: MoeOptions) -> Tensor:
    """LayerNorm(residual + y) for fp32 `y` [T, H], in fp32; steps that `options` lacks are skipped."""
    if options.residual is not None:
        y = options.residual.float() + y
    if options.norm is not None:
        weight, bias, eps = options.norm
        y = F.layer_norm(y, y.shape[-1:], weight.float(), None if bias is None else bias.float(), eps)
    return y
