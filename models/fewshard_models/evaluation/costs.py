"""The cost of one item: parameters and MACs of a loaded model, with zero weights counted; called by
`assessment`."""

from dataclasses import dataclass
from functools import singledispatch

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from fewshard_models.counting import count_macs, count_parameters, macs_input
from fewshard_models.image import FewshardImageForImageClassification

_MASKED = 0.99


@dataclass(frozen=True, slots=True)
class Cost:
    """The cost of one item. MACs are None if the architecture is not ours; FLOPs are twice the MACs.

    macs: MACs at `macs_input`, from the shapes.
    macs_nonzero: the same without products by zero weights.
    """

    parameters_total: int
    parameters_active: int
    parameters_nonzero: int
    macs: int | None = None
    macs_nonzero: int | None = None
    macs_input: str = ""

    @property
    def is_masked(self) -> bool:
        """Whether over 1 % of the products have a zero weight: a mask rather than a smaller tensor."""
        return None not in (self.macs, self.macs_nonzero) and self.macs_nonzero < _MASKED * self.macs  # type: ignore[operator]

    @property
    def macs_counted(self) -> int | None:
        """MACs as the paper counts them: with a mask, products by zero weights are left out."""
        return self.macs_nonzero if self.is_masked else self.macs


def cost_of(model: PreTrainedModel) -> Cost:
    parameters = count_parameters(model)
    nonzero = sum(int(torch.count_nonzero(parameter)) for parameter in model.parameters())
    counts = (parameters.total, parameters.active, nonzero)
    try:
        macs = count_macs(model.config)
    except ValueError:
        return Cost(*counts)
    return Cost(*counts, macs, nonzero_macs(model), macs_input(model.config))


@singledispatch
def nonzero_macs(model: PreTrainedModel) -> int | None:
    """Return the MACs of one item with nonzero weights; None for an architecture without a counter."""
    return None


@nonzero_macs.register
def _(model: FewshardImageForImageClassification) -> int:
    """Count one image: each output position of a convolution multiplies each of its weights once."""
    counts: list[int] = []

    def count(module: nn.Module, _: tuple[Tensor, ...], out: Tensor) -> None:
        assert isinstance(module, nn.Conv2d | nn.Linear)
        places = out[0, 0].numel()
        counts.append(places * int(torch.count_nonzero(module.weight)))

    layers = [module for module in model.modules() if isinstance(module, nn.Conv2d | nn.Linear)]
    hooks = [layer.register_forward_hook(count) for layer in layers]
    try:
        _run_one_image(model)
    finally:
        for hook in hooks:
            hook.remove()
    return sum(counts)


def _run_one_image(model: PreTrainedModel) -> None:
    parameter = next(model.parameters())
    size = model.config.image_size
    image = torch.zeros(1, model.config.num_channels, size, size, dtype=parameter.dtype)
    with torch.enable_grad():  # otherwise a prepared model would bypass its convolutions
        model(image.to(parameter.device))
