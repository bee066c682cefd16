"""The activations an expert may have, by the names transformers uses, and how a gated expert applies one.

The values a caller of `moe_ffn` hands over, as every path receives them.

The last step of every torch path of `moe_ffn`: residual and LayerNorm in fp32, then one rounding.
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
    """act(projected), or act(gate) * up where `projected` holds the gate, then up, along `dim` (2I)."""
    if not gated:
        return ACTIVATIONS[activation](projected)
    gate, up = projected.chunk(2, dim=dim)
    return ACTIVATIONS[activation](gate) * up


SCORINGS = ("softmax", "topk_softmax", "sigmoid")


class ExpertWeights(NamedTuple):
    """The experts of one layer, in one dtype: `w1` [E, I, H] (gated: [E, 2I, H], the gate's I rows first),
    `b1` as `w1` without H or None, `w2` [E, H, I], `b2` [E, H] or None."""

    w1: Tensor
    b1: Tensor | None
    w2: Tensor
    b2: Tensor | None

    @property
    def num_experts(self) -> int:
        return self.w1.shape[0]


class Routing(NamedTuple):
    """A routing decided elsewhere: `weights` [T, k], any floating dtype, used as they are;
    `experts` [T, k], int32 or int64, each from 0 to E - 1."""

    weights: Tensor
    experts: Tensor


class LayerNormWeights(NamedTuple):
    """A LayerNorm over H (Ba et al. 2016): `weight` [H] and `bias` [H] or None, any floating dtype."""

    weight: Tensor
    bias: Tensor | None
    eps: float


@dataclass(frozen=True, slots=True, eq=False)
class MoeOptions:
    """Everything `moe_ffn` takes besides rows, router and experts; the meanings are in its docstring.

    The facade has checked them: a path may rely on names, shapes, dtypes and devices that fit. `top_k` is
    that of the routing where the routing is given.
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
    """LayerNorm(residual + y) for fp32 `y` [T, H], or as much of it as `options` names; fp32."""
    if options.residual is not None:
        y = options.residual.float() + y
    if options.norm is not None:
        weight, bias, eps = options.norm
        y = F.layer_norm(y, y.shape[-1:], weight.float(), None if bias is None else bias.float(), eps)
    return y
