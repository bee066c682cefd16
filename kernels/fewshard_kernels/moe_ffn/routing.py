"""Routing for every torch implementation of `moe_ffn`: logits, top-k and the routing statistics."""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from fewshard_kernels.moe_ffn.options import MoeOptions, Routing


class MoeStats(NamedTuple):
    """Routing statistics of one `moe_ffn` call; differentiable where training needs it.

    expert_rows: int64 [E], rows routed to each expert; sums to T * top_k. Masked-out experts are counted too.
    expert_probability: fp32 [E], router probability of each expert, summed over the T tokens.
    entropy: fp32 scalar, entropy of the router's distribution in nats, summed over the tokens.
    squared_log_z: fp32 scalar, squared log-partition of the router's logits, summed over the tokens (the
        router z-loss of ST-MoE, Zoph et al. 2022, equation 5, before the mean).

    The router's distribution is the softmax of its logits. With sigmoid scores it is the scores divided by
    their sum (DeepSeek-V3, 2024, equation 19). A token with a NaN logit counts only in `expert_rows`.
    For a given routing, `expert_probability` sums its weights, and the last two are NaN (unknown).
    """

    expert_rows: Tensor
    expert_probability: Tensor
    entropy: Tensor
    squared_log_z: Tensor


def route(
    x: Tensor, router: Tensor | Routing, num_experts: int, options: MoeOptions
) -> tuple[Tensor, Tensor, MoeStats]:
    """Choose `top_k` of E experts for each row of `x` [T, H] with `router` [E, H], in fp32.

    Returns fp32 weights [T, top_k], int64 experts [T, top_k] and the statistics. The chosen experts have the
    largest logits; every scoring grows with the logit. Weights by `scoring`:
    "softmax": softmax over all E (Switch Transformer, Fedus et al. 2021, equation 1).
    "topk_softmax": softmax over the kept logits (Shazeer et al. 2017, equation 3).
    "sigmoid": sigmoid of each logit (DeepSeek-V3, 2024, equation 15).
    `normalize` divides the kept weights by their sum. Raises ValueError for a given expert outside 0..E-1.
    """
    if isinstance(router, Routing):
        return _given(router, num_experts)
    logits = x.float() @ router.float().T
    scores = F.logsigmoid(logits) if options.scoring == "sigmoid" else logits
    log_probabilities = scores.log_softmax(dim=-1)
    experts = logits.topk(options.top_k, dim=-1).indices
    if options.normalize or options.scoring == "topk_softmax":
        # softmax(log s) = s / sum(s) serves both scorings and avoids dividing by a sum of zeros.
        weights = scores.gather(1, experts).softmax(dim=-1)
    else:
        weights = (scores if options.scoring == "sigmoid" else log_probabilities).gather(1, experts).exp()
    return weights, experts, _statistics(logits, log_probabilities, experts)


def route_groups(
    x: Tensor, sizes: Tensor, router: Tensor, *, top_k: int = 1, normalize: bool = False
) -> tuple[Routing, MoeStats]:
    """Softmax routing of N groups of rows: one choice per group, from its representative in `x` [N, H].

    `x` has any floating dtype. `sizes`: int64 [N], rows of each group. Returns the `Routing` of all
    T = sum of `sizes` rows, group after group, for `moe_ffn`, and the statistics as if each row were routed
    by itself.

    >>> groups, sizes = torch.tensor([[1.0, 0.0], [0.0, 1.0]]), torch.tensor([2, 1])
    >>> routing, stats = route_groups(groups, sizes, torch.eye(2))
    >>> routing.experts.flatten().tolist(), stats.expert_rows.tolist()
    ([0, 0, 1], [2, 1])
    """
    logits = x.float() @ router.float().T
    log_probabilities = logits.log_softmax(dim=-1)
    experts = logits.topk(top_k, dim=-1).indices
    kept = log_probabilities.gather(1, experts)
    weights = kept.softmax(dim=-1) if normalize else kept.exp()
    routing = Routing(weights.repeat_interleave(sizes, dim=0), experts.repeat_interleave(sizes, dim=0))
    return routing, _group_statistics(logits, log_probabilities, routing.experts, sizes)


def routing_stats(logits: Tensor, experts: Tensor, scoring: str = "softmax") -> MoeStats:
    """The statistics of a choice that somebody else made: `logits` [T, E], `experts` [T, k].

    `scoring`: "softmax" or "sigmoid", by which `MoeStats` defines the router's distribution.

    >>> stats = routing_stats(torch.zeros(3, 2), torch.tensor([[0], [1], [1]]))
    >>> stats.expert_rows.tolist(), round(stats.entropy.item() / 3, 3)
    ([1, 2], 0.693)
    """
    logits = logits.float()
    scores = F.logsigmoid(logits) if scoring == "sigmoid" else logits
    return _statistics(logits, scores.log_softmax(dim=-1), experts)


def _group_statistics(logits: Tensor, log_probabilities: Tensor, experts: Tensor, sizes: Tensor) -> MoeStats:
    probabilities = log_probabilities.exp()
    return MoeStats(
        expert_rows=torch.bincount(experts.flatten(), minlength=logits.shape[1]),
        expert_probability=(sizes[:, None] * probabilities).nansum(dim=0),
        entropy=-(sizes[:, None] * probabilities * log_probabilities).nansum(),
        squared_log_z=(sizes * logits.logsumexp(dim=-1).square()).nansum(),
    )


def _statistics(logits: Tensor, log_probabilities: Tensor, experts: Tensor) -> MoeStats:
    probabilities = log_probabilities.exp()
    # nansum: a NaN in one token must not affect the sums over all tokens.
    return MoeStats(
        expert_rows=torch.bincount(experts.flatten(), minlength=logits.shape[1]),
        expert_probability=probabilities.nansum(dim=0),
        entropy=-(probabilities * log_probabilities).nansum(),
        squared_log_z=logits.logsumexp(dim=-1).square().nansum(),
    )


def _given(routing: Routing, num_experts: int) -> tuple[Tensor, Tensor, MoeStats]:
    weights, experts = routing.weights.float(), routing.experts.long()
    if experts.numel():
        lowest, highest = (int(extreme) for extreme in experts.aminmax())
        if lowest < 0 or highest >= num_experts:
            wrong = lowest if lowest < 0 else highest
            raise ValueError(f"routing names expert {wrong}, but they run from 0 to {num_experts - 1}")
    unknown = weights.new_full((), float("nan"))
    probability = weights.new_zeros(num_experts).index_add(
        0, experts.flatten(), weights.flatten().nan_to_num()
    )
    rows = torch.bincount(experts.flatten(), minlength=num_experts)
    return weights, experts, MoeStats(rows, probability, unknown, unknown)
