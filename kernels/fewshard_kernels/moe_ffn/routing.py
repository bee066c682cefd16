"""Routing shared by every torch path of `moe_ffn`: logits, top-k, and the statistics that fall out of it."""

from typing import NamedTuple

import torch
from torch import Tensor


class MoeStats(NamedTuple):
    """What one call of `moe_ffn` routed; differentiable where training needs it.

    `expert_rows`: int64 [E], rows each expert received (sums to T * top_k exactly).
    `expert_probability`: fp32 [E], router probability of each expert summed over the T tokens.
    `entropy`: fp32 scalar, entropy of the router's distribution in nats, summed over the tokens.
    `squared_log_z`: fp32 scalar, squared log-partition of the router's logits, summed over the tokens
    (the router z-loss of ST-MoE, Zoph et al. 2022, equation 5, before the mean).
    """

    expert_rows: Tensor
    expert_probability: Tensor
    entropy: Tensor
    squared_log_z: Tensor


def route(x: Tensor, router: Tensor, top_k: int, normalize: bool) -> tuple[Tensor, Tensor, MoeStats]:
    """Choose `top_k` of E experts for each row of `x` [T, H] with `router` [E, H], in fp32.

    Returns fp32 weights [T, top_k], int64 experts [T, top_k] and the statistics. Softmax comes before
    top-k (Switch Transformer, Fedus et al. 2021, equation 1); `normalize` makes the kept weights sum to one.
    """
    logits = x.float() @ router.float().T
    log_z = torch.logsumexp(logits, dim=-1, keepdim=True)
    log_probabilities = logits - log_z
    probabilities = log_probabilities.exp()
    weights, experts = probabilities.topk(top_k, dim=-1)
    if normalize:
        weights = weights / weights.sum(dim=-1, keepdim=True)
    stats = MoeStats(
        expert_rows=torch.bincount(experts.flatten(), minlength=router.shape[0]),
        expert_probability=probabilities.sum(dim=0),
        entropy=-(probabilities * log_probabilities).sum(),
        squared_log_z=log_z.square().sum(),
    )
    return weights, experts, stats
