"""Smaller students out of a trained encoder: fewer layers and units, a factorised vocabulary, or experts."""

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor

from fewshard_models.recipes.vocabulary import TrimmedVocabulary, factorise
from fewshard_models.text import FewshardTextConfig, FewshardTextForSequenceClassification, pack
from fewshard_models.text.modeling import DenseFeedForward, MoeFeedForward


def take_layers(
    teacher: FewshardTextForSequenceClassification,
    layers: Sequence[int],
    intermediate_size: int,
    vocabulary: TrimmedVocabulary,
    embedding_size: int,
    sample: Sequence[Sequence[int]],
) -> FewshardTextForSequenceClassification:
    """A dense student: the teacher's `layers`, the `intermediate_size` units of each that matter most on the
    tokenised `sample`, its embeddings cut to the vocabulary and factorised, and a new head without pooler."""
    config = _like(
        teacher.config,
        vocab_size=len(vocabulary.kept),
        embedding_size=embedding_size,
        num_hidden_layers=len(layers),
        intermediate_size=intermediate_size,
        max_position_embeddings=128,
        type_vocab_size=0,
        pooler_act=None,
    )
    student = FewshardTextForSequenceClassification(config)
    units = ffn_units(teacher, sample)
    with torch.no_grad():
        _copy_embeddings(teacher, student, vocabulary, embedding_size)
        for target, source in zip(student.layers, layers, strict=True):
            weights = teacher.layers[source].state_dict()
            importance = units[source].abs().mean(dim=0) * weights["ffn.down.weight"].norm(dim=0)
            kept = importance.topk(intermediate_size).indices
            weights["ffn.up.weight"] = weights["ffn.up.weight"][kept]
            weights["ffn.up.bias"] = weights["ffn.up.bias"][kept]
            weights["ffn.down.weight"] = weights["ffn.down.weight"][:, kept]
            target.load_state_dict(weights)
    return student


def split_into_experts(
    dense: FewshardTextForSequenceClassification,
    num_experts: int,
    intermediate_size: int,
    sample: Sequence[Sequence[int]],
    **options: Any,
) -> FewshardTextForSequenceClassification:
    """An MoE student from a dense model: tokens are clustered at each layer, the router starts at the
    clusters' centres, and each expert takes the units that matter most to its cluster.

    Units that matter to all clusters end up in all experts, as MoEBERT (Zuo et al. 2022) arranges by hand.
    `options` are further fields of the configuration.
    """
    config = _like(dense.config, num_experts=num_experts, intermediate_size=intermediate_size, **options)
    student = FewshardTextForSequenceClassification(config)
    inputs, units = ffn_inputs(dense, sample), ffn_units(dense, sample)
    with torch.no_grad():
        weights = {key: value for key, value in dense.state_dict().items() if ".ffn." not in key}
        student.load_state_dict(weights, strict=False)
        for index, (old, new) in enumerate(zip(dense.layers, student.layers, strict=True)):
            _split_layer(
                cast(DenseFeedForward, old.ffn), cast(MoeFeedForward, new.ffn), inputs[index], units[index]
            )
    return student


def _split_layer(dense: DenseFeedForward, moe: MoeFeedForward, inputs: Tensor, units: Tensor) -> None:
    num_experts, width, _ = moe.w1.shape
    router, owner = cluster(inputs, num_experts)
    moe.router.copy_(router)
    for expert in range(num_experts):
        importance = units[owner == expert].abs().mean(dim=0) * dense.down.weight.norm(dim=0)
        kept = importance.topk(width).indices
        moe.w1[expert] = dense.up.weight[kept]
        moe.b1[expert] = dense.up.bias[kept]
        moe.w2[expert] = dense.down.weight[:, kept]
        moe.b2[expert] = dense.down.bias


def cluster(inputs: Tensor, num_clusters: int, num_rounds: int = 30, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Balanced k-means on the directions of `inputs` [T, H] about their mean.

    Returns router rows [num_clusters, H], scaled so that the median token gives its cluster about 0.9 of the
    probability, and each token's cluster int64 [T]. The rows are orthogonal to the mean, which would
    otherwise favour one expert for every token.
    """
    mean = inputs.mean(dim=0)
    points = torch.nn.functional.normalize(inputs - mean, dim=1)
    centres = _far_apart(points, num_clusters, seed)
    penalty = torch.zeros(num_clusters)
    for _ in range(num_rounds):
        owner = (points @ centres.T - penalty).argmax(dim=1)
        share = torch.bincount(owner, minlength=num_clusters) / len(points)
        penalty = penalty + 0.1 * (share - 1 / num_clusters)
        sums = torch.zeros_like(centres).index_add(0, owner, points)
        centres = torch.nn.functional.normalize(sums, dim=1)
    direction = torch.nn.functional.normalize(mean, dim=0)
    rows = centres - (centres @ direction)[:, None] * direction
    scores = (inputs @ rows.T).sort(dim=1, descending=True).values
    gap = (scores[:, 0] - scores[:, 1]).median()
    return rows * (3.0 / gap), (inputs @ rows.T).argmax(dim=1)


def _far_apart(points: Tensor, count: int, seed: int) -> Tensor:
    """Starting centres: a random point, then again and again the point least like those chosen."""
    first = int(torch.randint(len(points), (1,), generator=torch.Generator().manual_seed(seed)))
    chosen = points[first : first + 1]
    while len(chosen) < count:
        nearest = (points @ chosen.T).amax(dim=1)
        chosen = torch.cat([chosen, points[nearest.argmin()][None]])
    return chosen


def ffn_inputs(model: FewshardTextForSequenceClassification, sample: Sequence[Sequence[int]]) -> list[Tensor]:
    """What enters each layer's feed-forward network, fp32 [T, H], over the tokenised sample."""
    return _record(model, sample, lambda layer: layer.ffn, lambda inputs, _: inputs[0])


def ffn_units(model: FewshardTextForSequenceClassification, sample: Sequence[Sequence[int]]) -> list[Tensor]:
    """The activated hidden units of each dense layer, fp32 [T, intermediate_size]."""
    return _record(model, sample, lambda layer: layer.ffn.down, lambda inputs, _: inputs[0])


def _record(
    model: FewshardTextForSequenceClassification, sample: Sequence[Sequence[int]], where: Any, what: Any
) -> list[Tensor]:
    seen: list[Tensor] = []
    hooks = [
        where(layer).register_forward_hook(
            lambda _, inputs, output: seen.append(what(inputs, output).detach())
        )
        for layer in model.layers
    ]
    with torch.inference_mode():
        model.eval().forward_packed(pack(list(sample), None, torch.device("cpu")))
    for hook in hooks:
        hook.remove()
    return [tensor.clone() for tensor in seen]


def _copy_embeddings(
    teacher: FewshardTextForSequenceClassification,
    student: FewshardTextForSequenceClassification,
    vocabulary: TrimmedVocabulary,
    embedding_size: int,
) -> None:
    old, new = teacher.embeddings, student.embeddings
    factors, basis = factorise(old.word_embeddings.weight[vocabulary.kept], vocabulary.counts, embedding_size)
    new.word_embeddings.weight.copy_(factors)
    assert new.word_projection is not None
    new.word_projection.weight.copy_(basis)
    positions = old.position_embeddings.weight[: new.position_embeddings.num_embeddings]
    if old.token_type_embeddings is not None:
        positions = positions + old.token_type_embeddings.weight[0]
    new.position_embeddings.weight.copy_(positions)
    new.norm.load_state_dict(old.norm.state_dict())


def _like(config: FewshardTextConfig, **changes: Any) -> FewshardTextConfig:
    return FewshardTextConfig(**{**config.to_dict(), **changes})
