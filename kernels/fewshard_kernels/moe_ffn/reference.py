"""The definition of `moe_ffn`: every other path is tested against this one."""

import torch
import torch.nn.functional as F
from torch import Tensor

from fewshard_kernels.moe_ffn.activations import ACTIVATIONS
from fewshard_kernels.moe_ffn.routing import MoeStats, route


def moe_ffn_reference(
    x: Tensor,
    router: Tensor,
    w1: Tensor,
    b1: Tensor | None,
    w2: Tensor,
    b2: Tensor | None,
    *,
    top_k: int,
    activation: str,
    normalize: bool,
    dropout: float,
) -> tuple[Tensor, MoeStats]:
    """y[t] = sum over the chosen experts e of p[t, e] * (act(x[t] W1[e]^T + b1[e]) W2[e]^T + b2[e]).

    One expert after the other, the weighted sum in fp32. Shapes and dtypes as in `moe_ffn`.
    """
    weights, experts, stats = route(x, router, top_k, normalize)
    y = torch.zeros(x.shape, dtype=torch.float32, device=x.device)
    for expert in range(w1.shape[0]):
        rows, choices = torch.where(experts == expert)
        hidden = ACTIVATIONS[activation](F.linear(x[rows], w1[expert], None if b1 is None else b1[expert]))
        hidden = F.dropout(hidden, dropout, training=dropout > 0)
        out = F.linear(hidden, w2[expert], None if b2 is None else b2[expert])
        y = y.index_add(0, rows, out.float() * weights[rows, choices, None])
    return y.to(x.dtype), stats
