"""`moe_ffn` on a CPU: rows sorted by expert once, one pair of products for each expert that was hit."""

import torch
import torch.nn.functional as F
from torch import Tensor

from fewshard_kernels.moe_ffn.activations import ACTIVATIONS
from fewshard_kernels.moe_ffn.routing import MoeStats, route


def moe_ffn_cpu(
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
    """As the reference, without its E searches and scatters: one gather in, one gather out."""
    weights, experts, stats = route(x, router, top_k, normalize)
    order = experts.flatten().argsort(stable=True)
    grouped = x[order // top_k]
    outputs = []
    for expert, rows in enumerate(grouped.split(stats.expert_rows.tolist())):
        if rows.shape[0] == 0:
            continue
        hidden = ACTIVATIONS[activation](F.linear(rows, w1[expert], None if b1 is None else b1[expert]))
        hidden = F.dropout(hidden, dropout, training=dropout > 0)
        outputs.append(F.linear(hidden, w2[expert], None if b2 is None else b2[expert]))
    inverse = torch.empty_like(order)
    inverse[order] = torch.arange(order.numel())
    ungrouped = torch.cat(outputs)[inverse] if outputs else grouped
    y = (ungrouped.view(*experts.shape, x.shape[1]) * weights[..., None]).sum(dim=1)
    return y.to(x.dtype), stats
