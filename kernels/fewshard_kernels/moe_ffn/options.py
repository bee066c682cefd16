"""The values a caller of `moe_ffn` hands over, as every path receives them."""

from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor

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
