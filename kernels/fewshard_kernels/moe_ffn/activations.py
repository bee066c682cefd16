"""The activations an expert may have, by the names transformers uses, and how a gated expert applies one."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor


def _gelu_tanh(x: Tensor) -> Tensor:
    return F.gelu(x, approximate="tanh")


ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu": F.gelu,
    "gelu_pytorch_tanh": _gelu_tanh,
    "relu": torch.relu,
    "silu": F.silu,
}


def activate(projected: Tensor, activation: str, gated: bool, dim: int = -1) -> Tensor:
    """act(projected), or act(gate) * up where `projected` holds the gate, then up, along `dim` (2I)."""
    if not gated:
        return ACTIVATIONS[activation](projected)
    gate, up = projected.chunk(2, dim=dim)
    return ACTIVATIONS[activation](gate) * up
