"""Groups of channels of our CNN that live and die together: their cost, their salience, and their removal.

`cut` removes the dead channels of a masked CNN, which leaves a smaller dense network. Used by RigL, pruning
and the recipes.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn

from fewshard_models.errors import RecipeError
from fewshard_models.image import FewshardImageConfig, FewshardImageForImageClassification

Cnn = FewshardImageForImageClassification
Alive = dict[str, Tensor]
"""A bool tensor [width] for each group; True is a living channel."""


@dataclass(frozen=True, slots=True)
class Group:
    """A group of channels, by names of modules.

    producers: modules that write the channels.
    norms: norms that follow them.
    consumers: modules that read the channels.
    """

    name: str
    producers: tuple[str, ...]
    norms: tuple[str, ...]
    consumers: tuple[str, ...]


def groups_of(config: FewshardImageConfig) -> list[Group]:
    """The groups: the stem, each stage's residual stream, and the inside of each residual block.

    A stream's channel has two producers: the widening convolution and the block's last one.
    """
    groups = [Group("stem", ("stem",), (), ("stages.0.down.conv",))]
    for index in range(len(config.stage_channels)):
        stage = f"stages.{index}"
        last = index + 1 == len(config.stage_channels)
        following = "classifier" if last else f"stages.{index + 1}.down.conv"
        writers = (f"{stage}.down", f"{stage}.block.1")
        groups.append(
            Group(
                stage,
                tuple(f"{writer}.conv" for writer in writers),
                tuple(f"{writer}.norm" for writer in writers),
                (f"{stage}.block.0.conv", following),
            )
        )
        inner = f"{stage}.block.0"
        groups.append(
            Group(f"{stage}.block", (f"{inner}.conv",), (f"{inner}.norm",), (f"{stage}.block.1.conv",))
        )
    return groups


def widths_of(config: FewshardImageConfig) -> dict[str, int]:
    widths = {"stem": config.stem_channels}
    for index, (stage, block) in enumerate(zip(config.stage_channels, config.block_channels, strict=True)):
        widths |= {f"stages.{index}": stage, f"stages.{index}.block": block}
    return widths


def with_widths(
    config: FewshardImageConfig, widths: Mapping[str, int], kind: str | None
) -> FewshardImageConfig:
    """The configuration with other widths, and `kind` as its `sparsity_kind`."""
    stages = range(len(config.stage_channels))
    changes = {
        "stem_channels": widths["stem"],
        "stage_channels": [widths[f"stages.{index}"] for index in stages],
        "block_channels": [widths[f"stages.{index}.block"] for index in stages],
        "sparsity_kind": kind,
    }
    return FewshardImageConfig(**{**config.to_dict(), **changes})


def macs_of(config: FewshardImageConfig, widths: Mapping[str, int]) -> int:
    """MACs of one image for a network of these widths."""
    stages = range(len(config.stage_channels))
    return config.count_macs_of_widths(
        widths["stem"],
        [widths[f"stages.{index}"] for index in stages],
        [widths[f"stages.{index}.block"] for index in stages],
    )


def squared_salience(model: Cnn, groups: list[Group]) -> dict[str, Tensor]:
    """The squared first-order change of the loss if each channel were removed: fp32 [width] by group.

    Molchanov et al. 2019 (arXiv:1906.10771), with the gate on the channel itself. Its derivative is the sum
    of weight times gradient over all consumers of the channel, which also holds for a residual stream.
    """
    result = {}
    with torch.no_grad():
        for group in groups:
            total = torch.zeros(())
            for consumer in group.consumers:
                weight = weight_of(model, consumer)
                assert weight.grad is not None
                total = total + (weight * weight.grad).transpose(0, 1).flatten(1).sum(1)
            result[group.name] = total.square()
    return result


def room(model: Cnn, groups: list[Group], alive: Alive) -> dict[str, Tensor]:
    """Where living channels allow a parameter to be non-zero: a bool tensor of its shape, for each parameter
    that a group touches."""
    places: dict[str, Tensor] = {}
    parameters = dict(model.named_parameters())
    for group in groups:
        living = alive[group.name]
        for name in _written(group, parameters):
            outward = living.view(-1, *[1] * (parameters[name].ndim - 1))
            _restrict(places, name, parameters[name], outward)
        for module in group.consumers:
            name = f"{module}.weight"
            inward = living.view(1, -1, *[1] * (parameters[name].ndim - 2))
            _restrict(places, name, parameters[name], inward)
    return places


def living_channels(model: Cnn) -> Alive:
    """The channels that can be non-zero, determined from the weights alone.

    A channel is dead if every norm that follows it has zero weight and bias there (for the stem: its own
    weight and bias).
    """
    alive = {}
    for group in groups_of(model.config):
        modules = [model.get_submodule(name) for name in group.norms or group.producers]
        alive[group.name] = torch.stack([_nonzero(module) for module in modules]).any(0)
    return alive


def weight_of(model: nn.Module, module: str) -> nn.Parameter:
    return cast(nn.Parameter, model.get_submodule(module).weight)


def require_cnn(model: nn.Module) -> Cnn:
    """The model, if it is our CNN. Raises RecipeError for another architecture."""
    if not isinstance(model, Cnn):
        raise RecipeError(f"channels are cut from Fewshard's CNN, not from {type(model).__name__}")
    return model


def _written(group: Group, parameters: Mapping[str, Tensor]) -> list[str]:
    """The parameters whose first dimension is the group's channels."""
    names = [f"{module}.{part}" for module in group.producers + group.norms for part in ("weight", "bias")]
    return [name for name in names if name in parameters]


def _restrict(places: dict[str, Tensor], name: str, parameter: Tensor, living: Tensor) -> None:
    before = places.get(name, torch.ones_like(parameter, dtype=torch.bool))
    places[name] = before & living


def _nonzero(module: nn.Module) -> Tensor:
    weight, bias = cast(Tensor, module.weight), cast(Tensor, module.bias)
    return (weight.detach().flatten(1) if weight.ndim > 1 else weight.detach()[:, None]).ne(0).any(
        1
    ) | bias.detach().ne(0)


def cut(model: Cnn, kind: str | None = "dynamic", round_to: int = 1) -> Cnn:
    """The network without its dead channels, rebuilt from its configuration; the logits do not change.

    `round_to`: keep enough dead channels to make each width a multiple of it. Raises RecipeError if a whole
    group is dead.
    """
    alive = living_channels(model)
    if dead := [name for name, living in alive.items() if not living.any()]:
        raise RecipeError(f"every channel of {', '.join(dead)} is dead; nothing would be left of the layer")
    kept = {name: _rounded(living, round_to) for name, living in alive.items()}
    return take_channels(model, kept, kind)


def take_channels(model: Cnn, kept: Alive, kind: str | None) -> Cnn:
    """A network with only the `kept` channels, on the CPU, in fp32 and eval mode."""
    config = with_widths(model.config, {name: int(mask.sum()) for name, mask in kept.items()}, kind)
    state = {name: tensor.detach().cpu() for name, tensor in model.state_dict().items()}
    for group in groups_of(model.config):
        index = kept[group.name].nonzero().flatten()
        for module in group.producers + group.norms:
            _take(state, module, index, axis=0)
        for module in group.consumers:
            state[f"{module}.weight"] = state[f"{module}.weight"].index_select(1, index)
    smaller = Cnn(config)
    smaller.load_state_dict(state)
    smaller.eval()
    return smaller


def _take(state: dict[str, Tensor], module: str, index: Tensor, axis: int) -> None:
    """Select `index` in every tensor of the module that has one entry per channel."""
    for name in [name for name in state if name.rpartition(".")[0] == module and state[name].ndim]:
        state[name] = state[name].index_select(axis, index)


def _rounded(living: Tensor, round_to: int) -> Tensor:
    wanted = min(len(living), -(-int(living.sum()) // round_to) * round_to)
    # Living channels first, then dead ones, each in their original order.
    order = torch.argsort(living.to(torch.int8), descending=True, stable=True)
    kept = torch.zeros_like(living)
    kept[order[:wanted]] = True
    return kept
