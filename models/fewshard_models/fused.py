"""Base class of layers with a fused form for inference on a CPU, for the text and image models."""

from collections.abc import Callable
from typing import Generic, TypeVar

import torch
from torch import Tensor, nn

Form = TypeVar("Form", bound=Callable[[Tensor], Tensor])


class Fusable(nn.Module, Generic[Form]):
    """A layer that can run as one fused operation in eval mode, when no gradients are recorded.

    `fused` is not part of the state dict; training and casts drop it.
    """

    fused: Form | None = None

    @property
    def usable(self) -> Form | None:
        """The fused form, if it may run now."""
        return None if torch.is_grad_enabled() else self.fused

    def train(self, mode: bool = True) -> "Fusable[Form]":
        if mode:
            self.fused = None
        return super().train(mode)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "Fusable[Form]":
        self.fused = None
        super()._apply(fn, recurse)
        return self
