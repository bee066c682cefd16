"""Mixtures of experts made from trained dense encoders, by splitting their units or copying them.

Called by the text recipes. They are then trained by distillation (`recipes/distillation`), and
`sparsify/observers` monitors their routing.
"""

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from fewshard_models.errors import RecipeError
from fewshard_models.sparsify.observers import Text, ffn_inputs, ffn_units, importance
from fewshard_models.text import FewshardTextConfig
from fewshard_models.text.feed_forward import DenseFeedForward, MoeFeedForward


def split_into_experts(
    dense: Text,
    num_experts: int,
    expert_size: int,
    sample: Sequence[Sequence[int]],
    *,
    num_shared: int = 0,
    rest: Text | None = None,
    **options: Any,
) -> Text:
    """Split the dense model's feed-forward networks into experts of `expert_size` units each.

    The inputs of each layer on the tokenised `sample` are clustered; the router starts at the cluster
    centres. Each expert takes the `num_shared` units that matter most overall (MoEBERT, Zuo et al. 2022,
    section 3.2), then those that matter most to its cluster.

    rest: the model for all weights but the experts; the dense model by default.
    options: further configuration fields; with `routing` "request", items are clustered instead of tokens.
    Raises RecipeError if the sizes do not fit.
    """
    units_of_dense = dense.config.intermediate_size
    if not 0 <= num_shared <= expert_size <= units_of_dense:
        raise RecipeError(
            f"experts of {expert_size} units, {num_shared} of them shared, cannot be taken from "
            f"{units_of_dense}; choose shared <= expert <= {units_of_dense}"
        )
    student = _with_moe_layers(rest or dense, num_experts, expert_size, options)
    inputs, units = ffn_inputs(dense, sample), ffn_units(dense, sample)
    owners = torch.arange(len(sample)).repeat_interleave(torch.tensor([len(item) for item in sample]))
    with torch.no_grad():
        for index, old, new in _moe_layers(dense, student):
            router, chosen = _cluster_rows(inputs[index], owners, num_experts, student.config.routing)
            new.router.copy_(router)
            _share_out(old, new, units[index], chosen, num_shared)
    return student


def upcycle(dense: Text, num_experts: int, *, rest: Text | None = None, **options: Any) -> Text:
    """Copy the dense feed-forward network to every expert, with a random router (Komatsuzaki et al. 2022).

    This adds parameters and saves nothing: start from a dense model with fewer layers. At top-1 the copies
    are scaled by the router's probability; with `norm_topk_prob=True` the model initially equals the dense
    one.
    """
    student = _with_moe_layers(rest or dense, num_experts, dense.config.intermediate_size, options)
    with torch.no_grad():
        for _, old, new in _moe_layers(dense, student):
            new.w1.copy_(old.up.weight.expand_as(new.w1))
            new.b1.copy_(old.up.bias.expand_as(new.b1))
            new.w2.copy_(old.down.weight.expand_as(new.w2))
            new.b2.copy_(old.down.bias.expand_as(new.b2))
    return student


def cluster(inputs: Tensor, num_clusters: int, num_rounds: int = 30, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Balanced k-means on the directions of `inputs` [T, H] relative to their mean.

    Returns router rows [num_clusters, H] and the cluster of each token, int64 [T]. Rows are scaled so that
    the median token gives its cluster a probability of about 0.9. They are orthogonal to the mean, which
    would otherwise favour one expert for every token.
    """
    mean = inputs.mean(dim=0)
    points = nn.functional.normalize(inputs - mean, dim=1)
    centres = _far_apart(points, num_clusters, seed)
    penalty = torch.zeros(num_clusters)
    for _ in range(num_rounds):
        owner = (points @ centres.T - penalty).argmax(dim=1)
        share = torch.bincount(owner, minlength=num_clusters) / len(points)
        penalty = penalty + 0.1 * (share - 1 / num_clusters)
        sums = torch.zeros_like(centres).index_add(0, owner, points)
        centres = nn.functional.normalize(sums, dim=1)
    direction = nn.functional.normalize(mean, dim=0)
    rows = centres - (centres @ direction)[:, None] * direction
    scores = (inputs @ rows.T).sort(dim=1, descending=True).values
    gap = (scores[:, 0] - scores[:, 1]).median()
    return rows * (3.0 / gap), (inputs @ rows.T).argmax(dim=1)


def _with_moe_layers(rest: Text, num_experts: int, expert_size: int, options: dict[str, Any]) -> Text:
    """An MoE model with the weights of `rest`, except in the expert layers."""
    changes = {"num_experts": num_experts, "moe_intermediate_size": expert_size, **options}
    student = Text(FewshardTextConfig(**{**rest.config.to_dict(), **changes}))
    taken = tuple(f"layers.{index}.ffn." for index in student.config.expert_layers)
    weights = {key: value for key, value in rest.state_dict().items() if not key.startswith(taken)}
    student.load_state_dict(weights, strict=False)
    return student


def _moe_layers(dense: Text, student: Text) -> list[tuple[int, DenseFeedForward, MoeFeedForward]]:
    return [
        (
            index,
            cast(DenseFeedForward, dense.layers[index].ffn),
            cast(MoeFeedForward, student.layers[index].ffn),
        )
        for index in student.config.expert_layers
    ]


def _cluster_rows(inputs: Tensor, owners: Tensor, num_experts: int, routing: str) -> tuple[Tensor, Tensor]:
    """Initial router rows, and the expert of each row [T]."""
    if routing == "token":
        return cluster(inputs, num_experts)
    counts = torch.bincount(owners)
    means = torch.zeros(len(counts), inputs.shape[1]).index_add(0, owners, inputs) / counts[:, None]
    router, chosen = cluster(means, num_experts)
    return router, chosen[owners]


def _share_out(
    dense: DenseFeedForward, moe: MoeFeedForward, units: Tensor, owner: Tensor, num_shared: int
) -> None:
    num_experts, width, _ = moe.w1.shape
    down = dense.down.weight
    shared = importance(units, down).topk(num_shared).indices
    for expert in range(num_experts):
        rows = units[owner == expert]
        # An expert without tokens in the sample takes the units that matter most overall.
        own = importance(rows if len(rows) else units, down)
        own[shared] = float("inf")
        kept = own.topk(width).indices
        moe.w1[expert] = dense.up.weight[kept]
        moe.b1[expert] = dense.up.bias[kept]
        moe.w2[expert] = down[:, kept]
        moe.b2[expert] = dense.down.bias


def _far_apart(points: Tensor, count: int, seed: int) -> Tensor:
    """Initial centres: a random point, then repeatedly the point least similar to those chosen."""
    first = int(torch.randint(len(points), (1,), generator=torch.Generator().manual_seed(seed)))
    chosen = points[first : first + 1]
    while len(chosen) < count:
        nearest = (points @ chosen.T).amax(dim=1)
        chosen = torch.cat([chosen, points[nearest.argmin()][None]])
    return chosen
