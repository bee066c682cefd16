"""Masks on weights, and pruning by magnitude (Han et al. 2015, arXiv:1506.02626)."""

from collections.abc import Iterable, Iterator, Mapping
from typing import Literal, cast

import torch
from torch import Tensor, nn

from fewshard_models.errors import RecipeError
from fewshard_models.sparsify.allocation import check_share

SPARED = ("stem", "classifier", "pooler", "word_projection")
"""Parts that stay dense by default: the first layer, and those that decide the output."""


class Masks:
    """A bool tensor for each masked weight, by the weight's name and of its shape; True is kept.

    Raises RecipeError for a mask that is not bool or keeps nothing.
    """

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        for name, mask in tensors.items():
            if mask.dtype != torch.bool:
                raise RecipeError(f"the mask of {name} is {mask.dtype}; masks are bool")
            if not mask.any():
                raise RecipeError(
                    f"the mask of {name} would empty the layer; choose a higher density or prune by layer"
                )
        self.tensors = dict(tensors)

    def __iter__(self) -> Iterator[str]:
        return iter(self.tensors)

    def __getitem__(self, name: str) -> Tensor:
        return self.tensors[name]

    @property
    def num_kept(self) -> int:
        return sum(int(mask.sum()) for mask in self.tensors.values())

    @property
    def num_weights(self) -> int:
        return sum(mask.numel() for mask in self.tensors.values())

    @property
    def density(self) -> float:
        """The share of weights that are kept."""
        return self.num_kept / self.num_weights

    def apply(self, model: nn.Module) -> None:
        """Zero all weights that are not kept, in place.

        Raises RecipeError, with nothing changed, if a mask fits no parameter.
        """
        pairs = self._pairs(model)
        with torch.no_grad():
            for parameter, mask in pairs:
                parameter.mul_(mask)

    def apply_to_gradients(self, model: nn.Module) -> None:
        for parameter, mask in self._pairs(model):
            if parameter.grad is not None:
                parameter.grad.mul_(mask)

    def apply_to_state(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        """Zero the optimizer state (such as momentum) of all weights that are not kept."""
        for parameter, mask in self._pairs(model):
            for value in optimizer.state.get(parameter, {}).values():
                if isinstance(value, Tensor) and value.shape == mask.shape:
                    value.mul_(mask)

    def state_dict(self) -> dict[str, Tensor]:
        return dict(self.tensors)

    def _pairs(self, model: nn.Module) -> list[tuple[nn.Parameter, Tensor]]:
        parameters = dict(model.named_parameters())
        for name, mask in self.tensors.items():
            if name not in parameters:
                raise RecipeError(f"a mask is for {name!r}, which the model does not have")
            if mask.shape != parameters[name].shape:
                raise RecipeError(
                    f"the mask of {name} is {tuple(mask.shape)}, its weight {tuple(parameters[name].shape)}; "
                    "weights are (out, in) or (out, in, height, width)"
                )
        return [(parameters[name], mask) for name, mask in self.tensors.items()]


def prunable(model: nn.Module, spared: Iterable[str] = SPARED) -> dict[str, nn.Parameter]:
    """The weights of linear layers and convolutions by name, (out, in[, kh, kw]), without spared parts.

    Raises RecipeError if there are none.
    """
    spared = set(spared)
    found = {
        f"{name}.weight": cast(nn.Parameter, module.weight)
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear | nn.Conv2d) and not spared & set(name.split("."))
    }
    if not found:
        raise RecipeError("the model has no linear or convolution that could be pruned")
    return found


def magnitude_masks(
    weights: Mapping[str, Tensor], density: float, scope: Literal["global", "layer"] = "global"
) -> Masks:
    """Keep the share `density` of the weights with the largest magnitude, globally or in each layer.

    Raises RecipeError for a density outside (0, 1), and if a layer would be emptied.
    """
    check_share("density", density)
    if scope == "layer":
        return Masks({name: _largest(weight, density) for name, weight in weights.items()})
    flat = torch.cat([weight.detach().flatten() for weight in weights.values()])
    parts = _largest(flat, density).split([weight.numel() for weight in weights.values()])
    return Masks(
        {name: part.view(weight.shape) for (name, weight), part in zip(weights.items(), parts, strict=True)}
    )


def _largest(weight: Tensor, density: float) -> Tensor:
    return top_mask(weight.detach().abs(), round(density * weight.numel()))


def top_mask(scores: Tensor, count: int) -> Tensor:
    """True at the `count` highest scores; exactly that many, even with ties."""
    mask = torch.zeros(scores.numel(), dtype=torch.bool, device=scores.device)
    mask[scores.flatten().topk(count).indices] = True
    return mask.view(scores.shape)
