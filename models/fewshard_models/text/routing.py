"""Which experts the tokens of a packed batch go to, where that is decided apart from the expert layer."""

import torch
from torch import Tensor

from fewshard_kernels import MoeStats, Routing, route_groups
from fewshard_models.text.configuration import FewshardTextConfig
from fewshard_models.text.packing import PackedTokens, mean_of_items


def choose_experts(
    hidden: Tensor, packed: PackedTokens, router: Tensor, config: FewshardTextConfig
) -> tuple[Routing, MoeStats]:
    """The choices of every row of `hidden` [T, H], with the statistics.

    With `routing: request` one choice an item, by the mean of its tokens, holds for all of them: a batch of
    one reads `top_k` experts. Else each token chooses.
    """
    if config.routing == "request":
        chooses, sizes = mean_of_items(hidden, packed), packed.lengths_tensor
    else:
        chooses, sizes = hidden, torch.ones(len(hidden), dtype=torch.int64, device=hidden.device)
    top_k, normalize = config.num_experts_per_tok, config.norm_topk_prob
    return route_groups(chooses, sizes, router, top_k=top_k, normalize=normalize)
