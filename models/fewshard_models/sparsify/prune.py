"""Structured pruning to a share of the MACs or of the measured time: channels of the CNN, heads and units of
the text encoder. The result is rebuilt from its configuration and a state dict, never unpickled."""

import math
from collections.abc import Callable, Mapping
from typing import Any, cast

import torch
from torch import Tensor

from fewshard_models.counting import count_macs
from fewshard_models.errors import RecipeError
from fewshard_models.sparsify.allocation import choose_widths, multiples
from fewshard_models.sparsify.channels import Cnn, groups_of, macs_of, widths_of, with_widths
from fewshard_models.text import FewshardTextConfig, FewshardTextForSequenceClassification
from fewshard_models.text.feed_forward import DenseFeedForward
from fewshard_models.text.modeling import Attention, EncoderLayer

Text = FewshardTextForSequenceClassification
Cost = Callable[[Mapping[str, int]], float]
"""Cost of a model with these widths, in MACs or seconds."""


def prune_channels(
    model: Cnn, share: float, cost_of: Cost | None = None, round_to: int = 16, taylor: bool = False
) -> Cnn:
    """Remove the CNN's least important channels with Torch-Pruning (Fang et al. 2023, arXiv:2301.12900),
    which finds and cuts coupled channels.

    share: maximum share of the present cost that remains.
    cost_of: the cost; MACs by default.
    round_to: multiple of which widths are.
    taylor: rank by first-order effect on the loss, which needs gradients, instead of the group's magnitude.
    Raises RecipeError if Torch-Pruning is missing or no widths reach the share.
    """
    pruning = _torch_pruning()
    model.eval()
    pixels = torch.zeros(1, model.config.num_channels, *[model.config.image_size] * 2)
    graph = pruning.DependencyGraph().build_dependency(
        model, example_inputs=pixels, forward_fn=lambda module, images: module(images).logits, verbose=False
    )
    importance = (
        pruning.importance.GroupTaylorImportance()
        if taylor
        else pruning.importance.GroupMagnitudeImportance()
    )
    full = widths_of(model.config)
    # The stem is a fixed whitening whose filters come in pairs, all of which matter.
    groups = {group.name: group.producers[0] for group in groups_of(model.config) if group.name != "stem"}

    def group_of(name: str, channels: list[int]) -> Any:
        root = model.get_submodule(groups[name])
        return graph.get_pruning_group(root, pruning.prune_conv_out_channels, idxs=channels)

    salience = {name: importance(group_of(name, list(range(full[name])))) for name in groups}
    count: Cost = cost_of or (lambda widths: macs_of(model.config, widths))
    chosen = choose_widths(
        {name: values.tolist() for name, values in salience.items()},
        {name: multiples(full[name], round_to) for name in groups},
        lambda widths: count({**full, **widths}),
        share * count(full),
        relative=True,
    )
    for name, width in chosen.items():
        least = salience[name].argsort()[: full[name] - width].tolist()
        if least:
            group_of(name, least).prune()
    smaller = Cnn(with_widths(model.config, {**full, **chosen}, "static"))
    smaller.load_state_dict(model.state_dict())
    smaller.eval()
    return smaller


def prune_text(model: Text, share: float, cost_of: Cost | None = None, round_to: int = 16) -> Text:
    """Remove attention heads and feed-forward units of the dense encoder, equally many in every layer.

    Torch-Pruning is not used: its tracing does not understand the packed product of queries, keys and values
    over concatenated items. Importance is the magnitude of all weights of a head or unit, as in its
    `GroupMagnitudeImportance`, divided by the layer's mean. `cost_of` takes the widths "heads" and "units".
    Raises RecipeError for an MoE model, or if no widths reach the share.
    """
    config = model.config
    if config.num_experts:
        raise RecipeError("prune the dense encoder, then split it into experts; an MoE model is not pruned")
    heads = torch.stack([_head_importance(layer.attention, config) for layer in _layers(model)])
    units = torch.stack([_unit_importance(cast(DenseFeedForward, layer.ffn)) for layer in _layers(model)])
    full = {"heads": config.num_attention_heads, "units": config.intermediate_size}
    count: Cost = cost_of or (lambda widths: count_macs(text_config(config, widths)))
    chosen = choose_widths(
        # All layers keep equally many, so the sum over the layers at each rank counts.
        {"heads": heads.sort(1).values.sum(0).tolist(), "units": units.sort(1).values.sum(0).tolist()},
        {"heads": multiples(full["heads"], 1), "units": multiples(full["units"], round_to)},
        count,
        share * count(full),
        relative=True,
    )
    smaller = Text(text_config(config, chosen))
    state = dict(model.state_dict())
    for index in range(config.num_hidden_layers):
        _keep_heads(state, f"layers.{index}.attention", _best(heads[index], chosen["heads"]), full["heads"])
        _keep_units(state, f"layers.{index}.ffn", _best(units[index], chosen["units"]))
    smaller.load_state_dict(state)
    smaller.eval()
    return smaller


def text_config(config: FewshardTextConfig, widths: Mapping[str, int]) -> FewshardTextConfig:
    """The encoder's configuration with these numbers of heads and units; the width of a head stays."""
    head_dim = config.attention_size // config.num_attention_heads
    changes = {
        "num_attention_heads": widths["heads"],
        "head_dim": head_dim,
        "intermediate_size": widths["units"],
        "sparsity_kind": "static",
    }
    return FewshardTextConfig(**{**config.to_dict(), **changes})


def _torch_pruning() -> Any:
    try:
        import torch_pruning
    except ImportError as error:
        raise RecipeError(
            "structured pruning of channels needs Torch-Pruning: pip install 'fewshard[sparsify]'"
        ) from error
    return torch_pruning


def _layers(model: Text) -> list[EncoderLayer]:
    return [cast(EncoderLayer, layer) for layer in model.layers]


def _head_importance(attention: Attention, config: FewshardTextConfig) -> Tensor:
    """Squared weights of each head's queries, keys, values and output, relative to the mean; fp32 [heads]."""
    heads = config.num_attention_heads
    qkv = attention.qkv.weight.detach().view(3, heads, -1).square().sum((0, 2))
    output = attention.output.weight.detach()
    return _by_mean(qkv + output.t().reshape(heads, -1).square().sum(1))


def _unit_importance(ffn: DenseFeedForward) -> Tensor:
    """Input norm times output norm of each unit, relative to the mean; fp32 [intermediate_size]."""
    up, down = ffn.up.weight.detach(), ffn.down.weight.detach()
    return _by_mean(up.norm(dim=1) * down.norm(dim=0))


def _by_mean(importance: Tensor) -> Tensor:
    return importance / importance.mean()


def _best(importance: Tensor, count: int) -> Tensor:
    return importance.topk(count).indices.sort().values


def _keep_heads(state: dict[str, Tensor], name: str, kept: Tensor, num_heads: int) -> None:
    for part in ("weight", "bias"):
        tensor = state[f"{name}.qkv.{part}"]
        width = tensor.shape[0] // (3 * num_heads)
        rest = tensor.shape[1:]
        state[f"{name}.qkv.{part}"] = tensor.view(3, num_heads, width, *rest)[:, kept].reshape(-1, *rest)
    output = state[f"{name}.output.weight"]
    state[f"{name}.output.weight"] = output.view(len(output), num_heads, -1)[:, kept].flatten(1)


def _keep_units(state: dict[str, Tensor], name: str, kept: Tensor) -> None:
    state[f"{name}.up.weight"] = state[f"{name}.up.weight"][kept]
    state[f"{name}.up.bias"] = state[f"{name}.up.bias"][kept]
    state[f"{name}.down.weight"] = state[f"{name}.down.weight"][:, kept]


def narrow_widths(full: Mapping[str, int], cost_of: Cost, target: float, round_to: int = 8) -> dict[str, int]:
    """Rounded widths in proportion to `full` (the stem unchanged) whose cost is nearest to `target`.

    For a small dense network of the same cost as a sparse one. Groups may be rounded up or down.
    """

    def distance(widths: Mapping[str, int]) -> float:
        return abs(math.log(cost_of(widths) / target))

    def at(percent: int) -> dict[str, int]:
        return {
            name: width if name == "stem" else max(round_to, int(width * percent / 100 / round_to) * round_to)
            for name, width in full.items()
        }

    choices = []
    for percent in range(5, 101):
        widths = at(percent)
        choices.append(widths)
        # Round up one group after the other, widest first: the smallest relative change first.
        for name in sorted(full, key=lambda name: -full[name]):
            if name != "stem" and widths[name] + round_to <= full[name]:
                widths = {**widths, name: widths[name] + round_to}
                choices.append(widths)
    return min(choices, key=distance)
