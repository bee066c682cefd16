"""Chooses the codes of activations from what a network computes on sample inputs."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from fewshard_kernels import Quantisation

_MAX_A_CALL = 2**14
_MAX_VALUES = 2**18
_TAIL = 1e-4
_SHARES = tuple(share / 40 for share in range(12, 41))
"""Shares of the whole range that are tried, from 0.3 to 1."""


class Sample:
    """A sample of the values of one activation, with its whole range."""

    def __init__(self) -> None:
        self.low = self.high = 0.0
        self._parts: list[Tensor] = []
        self._count = 0
        self._random = torch.Generator().manual_seed(0)

    def add(self, values: Tensor) -> None:
        """Add what one pass computed; all of it counts for the range, a part for the rest."""
        if not values.numel():
            return
        flat = values.detach().float().flatten()
        low, high = (float(extreme) for extreme in flat.aminmax())
        self.low, self.high = min(self.low, low), max(self.high, high)
        if self._count < _MAX_VALUES:
            kept = flat[torch.randint(len(flat), (min(len(flat), _MAX_A_CALL),), generator=self._random)]
            self._parts.append(kept)
            self._count += len(kept)

    @property
    def values(self) -> Tensor:
        return torch.cat(self._parts) if self._parts else torch.zeros(1)

    @property
    def is_empty(self) -> bool:
        return not self._parts


def whole_range(sample: Sample) -> Quantisation:
    """The code of the whole range that was seen: nothing is cut, and rare values make all steps wide."""
    return Quantisation.of_range(sample.low, sample.high)


def without_tails(sample: Sample) -> Quantisation:
    """The code of all values but the largest and smallest hundredth of a percent, which are cut."""
    tail = torch.tensor([_TAIL, 1 - _TAIL])
    low, high = torch.quantile(sample.values, tail).tolist()
    return Quantisation.of_range(low, high)


def least_error(sample: Sample) -> Quantisation:
    """The code with the least mean squared error on the sample; it may cut rare values for finer steps."""
    values = sample.values
    codes = [Quantisation.of_range(sample.low * share, sample.high * share) for share in _SHARES]
    errors = [float((code.decode(code.encode(values)) - values).square().mean()) for code in codes]
    return codes[min(range(len(codes)), key=errors.__getitem__)]


RULES: dict[str, Callable[[Sample], Quantisation]] = {
    "whole range": whole_range,
    "range without tails": without_tails,
    "least squared error": least_error,
}
"""Ways to choose a code. None is best for every network, so `fewshard quantize` tries all (docs/log.md)."""


@contextmanager
def watched(modules: Mapping[str, nn.Module], note: Callable[[str, tuple[Any, ...]], None]) -> Iterator[None]:
    """Within the block, `note` is given the name and inputs of each of these modules that runs."""
    hooks = [
        module.register_forward_pre_hook(lambda _, inputs, name=name: note(name, inputs))
        for name, module in modules.items()
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
