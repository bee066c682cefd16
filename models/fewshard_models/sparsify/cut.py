"""Export of a masked CNN: dead channels are cut out, and what is left is a smaller dense network."""

import torch
from torch import Tensor

from fewshard_models.errors import RecipeError
from fewshard_models.sparsify.channels import Alive, Cnn, groups_of, living_channels, with_widths


def cut(model: Cnn, kind: str | None = "dynamic", round_to: int = 1) -> Cnn:
    """The network without its dead channels, rebuilt from its configuration; logits as before.

    With `round_to`, as many dead channels stay as make each width a multiple. Raises RecipeError where a
    whole group is dead.
    """
    alive = living_channels(model)
    if dead := [name for name, living in alive.items() if not living.any()]:
        raise RecipeError(f"every channel of {', '.join(dead)} is dead; nothing would be left of the layer")
    kept = {name: _rounded(living, round_to) for name, living in alive.items()}
    return take_channels(model, kept, kind)


def take_channels(model: Cnn, kept: Alive, kind: str | None) -> Cnn:
    """A network of the `kept` channels alone, on the CPU, in fp32 and evaluation mode."""
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
    """Every tensor of the module that has one entry a channel."""
    for name in [name for name in state if name.rpartition(".")[0] == module and state[name].ndim]:
        state[name] = state[name].index_select(axis, index)


def _rounded(living: Tensor, round_to: int) -> Tensor:
    wanted = min(len(living), -(-int(living.sum()) // round_to) * round_to)
    # Living channels first, then dead ones in their order.
    order = torch.argsort(living.to(torch.int8), descending=True, stable=True)
    kept = torch.zeros_like(living)
    kept[order[:wanted]] = True
    return kept
