"""The definition of `moe_ffn`. Every other implementation is tested against it."""

import torch
import torch.nn.functional as F
from torch import Tensor

from fewshard_kernels.moe_ffn.options import ExpertWeights, MoeOptions, Routing, activate, add_and_norm
from fewshard_kernels.moe_ffn.routing import MoeStats, route


def moe_ffn_reference(
    x: Tensor, router: Tensor | Routing, weights: ExpertWeights, options: MoeOptions
) -> tuple[Tensor, MoeStats]:
    """y[t] = sum over the chosen, unmasked e of p[t, e] * (act(x[t] W1[e]^T + b1[e]) W2[e]^T + b2[e]).

    Computes one expert after the other; the weighted sum, residual and norm are in fp32. Shapes and dtypes as
    in `moe_ffn`.
    """
    probabilities, experts, stats = route(x, router, weights.num_experts, options)
    present = None if options.expert_mask is None else options.expert_mask.tolist()
    y = torch.zeros(x.shape, dtype=torch.float32, device=x.device)
    for expert in range(weights.num_experts):
        if present is None or present[expert]:
            rows, choices = torch.where(experts == expert)
            out = expert_ffn(x[rows], weights, expert, options)
            y = y.index_add(0, rows, out.float() * probabilities[rows, choices, None])
    return add_and_norm(y, options).to(x.dtype), stats


def expert_ffn(rows: Tensor, weights: ExpertWeights, expert: int, options: MoeOptions) -> Tensor:
    """One expert over its rows [R, H], without the router's weight; [R, H] in the dtype of `rows`."""
    w1, b1, w2, b2 = weights
    projected = F.linear(rows, w1[expert], None if b1 is None else b1[expert])
    hidden = activate(projected, options.activation, options.gated)
    hidden = F.dropout(hidden, options.dropout, training=options.dropout > 0)
    return F.linear(hidden, w2[expert], None if b2 is None else b2[expert])
