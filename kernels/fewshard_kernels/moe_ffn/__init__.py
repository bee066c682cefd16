"""The facade of the expert layer: checks the arguments, chooses a path, and can say why.

Called by `fewshard_models`; nothing else in the project multiplies experts.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass

import torch
from torch import Tensor

from fewshard_kernels.moe_ffn.activations import ACTIVATIONS
from fewshard_kernels.moe_ffn.cpu import moe_ffn_cpu
from fewshard_kernels.moe_ffn.reference import moe_ffn_reference
from fewshard_kernels.moe_ffn.routing import MoeStats

__all__ = ["MoeStats", "PathChoice", "explain", "force_path", "moe_ffn"]

_PATHS: dict[str, Callable[..., tuple[Tensor, MoeStats]]] = {
    "reference": moe_ffn_reference,
    "cpu": moe_ffn_cpu,
}
_forced: ContextVar[str | None] = ContextVar("forced_moe_ffn_path", default=None)


@dataclass(frozen=True, slots=True)
class PathChoice:
    """Which path `moe_ffn` takes on a device, and why."""

    device: str
    path: str
    reason: str


def moe_ffn(
    x: Tensor,
    router: Tensor,
    w1: Tensor,
    b1: Tensor | None,
    w2: Tensor,
    b2: Tensor | None,
    *,
    top_k: int = 1,
    activation: str = "gelu",
    normalize: bool = False,
    dropout: float = 0.0,
) -> tuple[Tensor, MoeStats]:
    """A mixture-of-experts feed-forward layer over T rows.

    Shapes: `x` [T, H]; `router` [E, H]; `w1` [E, I, H], `b1` [E, I] or None; `w2` [E, H, I], `b2` [E, H]
    or None. `x` and the experts share one dtype; the router runs in fp32 whatever its dtype. Returns
    y [T, H] in the dtype of `x`, and `MoeStats`. `normalize` makes the `top_k` weights sum to one;
    `dropout` (expert dropout, Fedus et al. 2021, section 2.4) acts on the activated hidden units.
    Raises ValueError where shapes, dtypes, devices or options do not fit together.
    """
    _check(x, router, w1, b1, w2, b2, top_k, activation)
    path = _forced.get() or explain(x.device).path
    return _PATHS[path](
        x, router, w1, b1, w2, b2, top_k=top_k, activation=activation, normalize=normalize, dropout=dropout
    )


@contextmanager
def force_path(path: str) -> Iterator[None]:
    """Make every `moe_ffn` in this context take `path`; for tests and benchmarks."""
    if path not in _PATHS:
        raise ValueError(f"no moe_ffn path {path!r}; there are {', '.join(_PATHS)}")
    token = _forced.set(path)
    try:
        yield
    finally:
        _forced.reset(token)


def explain(device: torch.device) -> PathChoice:
    """Which path `moe_ffn` takes on `device`, with the reason in words."""
    if device.type == "cpu":
        return PathChoice(
            str(device), "cpu", "rows grouped by expert, one oneDNN product per expert that was hit"
        )
    return PathChoice(str(device), "reference", f"no fused path for {device.type} yet; plain torch runs")


def _check(
    x: Tensor,
    router: Tensor,
    w1: Tensor,
    b1: Tensor | None,
    w2: Tensor,
    b2: Tensor | None,
    top_k: int,
    activation: str,
) -> None:
    if x.ndim != 2 or w1.ndim != 3:
        raise ValueError(f"x must be [T, H] and w1 [E, I, H], got {tuple(x.shape)} and {tuple(w1.shape)}")
    num_experts, width, hidden = w1.shape
    expected = {
        "x": (x, (x.shape[0], hidden)),
        "router": (router, (num_experts, hidden)),
        "b1": (b1, (num_experts, width)),
        "w2": (w2, (num_experts, hidden, width)),
        "b2": (b2, (num_experts, hidden)),
    }
    for name, (tensor, shape) in expected.items():
        if tensor is None:
            continue
        if tuple(tensor.shape) != shape:
            raise ValueError(
                f"{name} must be {list(shape)} to fit w1 {list(w1.shape)}, got {list(tensor.shape)}"
            )
        if tensor.device != x.device:
            raise ValueError(f"{name} is on {tensor.device} but x is on {x.device}; move them together")
        if name != "router" and tensor.dtype != w1.dtype:
            raise ValueError(f"{name} is {tensor.dtype} but w1 is {w1.dtype}; cast one of them")
    if not 1 <= top_k <= num_experts:
        raise ValueError(f"top_k must be from 1 to the {num_experts} experts, got {top_k}")
    if activation not in ACTIVATIONS:
        raise ValueError(f"no activation {activation!r}; there are {', '.join(ACTIVATIONS)}")
