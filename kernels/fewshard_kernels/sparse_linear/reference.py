"""The definition of `sparse_linear`: every other path is tested against this one."""

import torch.nn.functional as F
from torch import Tensor


def sparse_linear_reference(x: Tensor, weight: Tensor, mask: Tensor, bias: Tensor | None = None) -> Tensor:
    """y = x (weight * mask)^T + bias, by a dense product.

    `x` [..., I], `weight` [O, I] and `bias` [O] or None in one floating dtype; `mask` bool [O, I], True where
    a weight is kept. Returns y [..., O] in that dtype.
    """
    return F.linear(x, weight.masked_fill(~mask, 0.0), bias)
