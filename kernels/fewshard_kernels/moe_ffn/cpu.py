"""`moe_ffn` on a CPU with plain weights: sorts rows by expert once, then computes each expert with rows."""

import torch
from torch import Tensor

from fewshard_kernels.moe_ffn.options import ExpertWeights, MoeOptions, Routing, add_and_norm
from fewshard_kernels.moe_ffn.reference import expert_ffn
from fewshard_kernels.moe_ffn.routing import MoeStats, route


def moe_ffn_cpu(
    x: Tensor, router: Tensor | Routing, weights: ExpertWeights, options: MoeOptions
) -> tuple[Tensor, MoeStats]:
    """Same result as the reference, with one gather and one scatter in place of E. Differentiable."""
    probabilities, experts, stats = route(x, router, weights.num_experts, options)
    present = None if options.expert_mask is None else options.expert_mask.tolist()
    order = experts.flatten().argsort(stable=True)
    grouped = x[order // options.top_k]
    outputs = []
    for expert, rows in enumerate(grouped.split(stats.expert_rows.tolist())):
        if present is not None and not present[expert]:
            outputs.append(torch.zeros_like(rows))
        elif rows.shape[0]:
            outputs.append(expert_ffn(rows, weights, expert, options))
    inverse = torch.empty_like(order)
    inverse[order] = torch.arange(order.numel())
    ungrouped = torch.cat(outputs)[inverse] if outputs else grouped
    y = (ungrouped.view(*experts.shape, x.shape[1]) * probabilities[..., None]).sum(dim=1)
    return add_and_norm(y, options).to(x.dtype), stats
