"""Entry point of the expert layer: checks the arguments, chooses an implementation and explains the choice.

Called by `fewshard_models`, which computes experts in no other way.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from importlib.util import find_spec

import torch
from torch import Tensor

from fewshard_kernels.moe_ffn.check import check_options, check_router, check_rows, check_weights
from fewshard_kernels.moe_ffn.cpu import moe_ffn_cpu
from fewshard_kernels.moe_ffn.int8 import PackedInt8Experts, check_int8, moe_ffn_int8
from fewshard_kernels.moe_ffn.options import ExpertWeights, LayerNormWeights, MoeOptions, Routing
from fewshard_kernels.moe_ffn.packed import PackedExperts, moe_ffn_packed
from fewshard_kernels.moe_ffn.reference import moe_ffn_reference
from fewshard_kernels.moe_ffn.routing import MoeStats

# An implementation: (rows, router or routing, experts, options) -> (y, statistics). Arguments are checked.
MoePath = Callable[[Tensor, Tensor | Routing, ExpertWeights, MoeOptions], tuple[Tensor, MoeStats]]


def _moe_ffn_triton(
    x: Tensor, router: Tensor | Routing, weights: ExpertWeights, options: MoeOptions
) -> tuple[Tensor, MoeStats]:
    from fewshard_kernels.moe_ffn.triton import moe_ffn_triton

    return moe_ffn_triton(x, router, weights, options)


_PATHS: dict[str, MoePath] = {
    "reference": moe_ffn_reference,
    "cpu": moe_ffn_cpu,
    "triton": _moe_ffn_triton,
}
_forced: ContextVar[str | None] = ContextVar("forced_moe_ffn_path", default=None)


@dataclass(frozen=True, slots=True)
class PathChoice:
    """The implementation that `moe_ffn` uses on a device, and the reason."""

    device: str
    path: str
    reason: str


def moe_ffn(
    x: Tensor,
    router: Tensor | Routing,
    w1: Tensor | PackedExperts | PackedInt8Experts,
    b1: Tensor | None = None,
    w2: Tensor | None = None,
    b2: Tensor | None = None,
    *,
    top_k: int = 1,
    activation: str = "gelu",
    gated: bool = False,
    scoring: str = "softmax",
    normalize: bool = False,
    dropout: float = 0.0,
    expert_mask: Tensor | None = None,
    residual: Tensor | None = None,
    norm: LayerNormWeights | None = None,
) -> tuple[Tensor, MoeStats]:
    """A mixture-of-experts feed-forward layer over T rows.

        y[t] = sum over the top_k experts e of t, of p[t, e] * (act(x[t] W1[e]^T + b1[e]) W2[e]^T + b2[e])

    Shapes: `x` [T, H]; `w1` [E, I, H], `b1` [E, I] or None; `w2` [E, H, I], `b2` [E, H] or None. All share
    one dtype: float32, bfloat16 or float16. T may be 0. An expert may have no rows, or all of them.
    Returns y [T, H] in the dtype of `x`, and `MoeStats`.
    Precision: the router, p, the sum over experts, residual and norm run in fp32; y is rounded once.

    `router`: [E, H] in any floating dtype, or a `Routing` that supplies p and the experts. With a `Routing`,
    `top_k`, `scoring` and `normalize` have no effect. An expert outside 0..E-1 raises ValueError where the
    indices can be read without stalling the device; elsewhere its rows contribute nothing, uncounted.
    `activation`: "gelu" (with erf), "gelu_pytorch_tanh", "relu" or "silu".
    `gated`: `w1` [E, 2I, H] and `b1` [E, 2I] hold the gate and then the up projection of each expert; its
    hidden units are act(gate) * up (Shazeer 2020, equation 6).
    `scoring`: how p is computed from the logits. "softmax": over all experts, before top-k. "topk_softmax":
    over the top k. "sigmoid": for each expert independently.
    `normalize`: scale the kept p of each token to sum to one.
    `dropout`: expert dropout (Fedus et al. 2021, section 2.4) on the activated hidden units.
    `expert_mask`: bool [E], False for experts that are not on this shard. Their weights are never read and
    their rows contribute nothing; p and the statistics still cover all E.
    `residual`: [T, H] in the dtype of `x`; the result is residual + y.
    `norm`: the result is LayerNorm(residual + y) over H, in fp32; requires `residual`.
    `w1` may be `PackedExperts` (see `pack_experts`), without `b1`, `w2` and `b2`. On a CPU the packed weights
    are used, unless dropout or a gradient of `x` is needed; then, and elsewhere, the plain weights are.
    `w1` may be `PackedInt8Experts`, alone likewise: on a CPU, without gates, dropout and gradients.
    A NaN in one row of `x` affects that row of y only.
    Raises ValueError if shapes, dtypes, devices or options do not fit together.

    >>> x, router = torch.ones(3, 4), torch.ones(2, 4)  # three rows, two experts
    >>> w1, w2 = torch.full((2, 5, 4), 0.25), torch.full((2, 4, 5), 0.2)
    >>> y, stats = moe_ffn(x, router, w1, None, w2, None, activation="relu")
    >>> y[0].tolist()  # p is 1/2: both experts are equally likely, and one is chosen
    [0.5, 0.5, 0.5, 0.5]
    >>> stats.expert_rows.tolist()
    [3, 0]
    """
    if isinstance(router, Routing) and router.experts.ndim == 2:
        top_k = router.experts.shape[1]
    options = MoeOptions(top_k, activation, gated, scoring, normalize, dropout, expert_mask, residual, norm)
    if isinstance(w1, PackedInt8Experts):
        _alone(b1, w2, b2)
        check_int8(x, w1, activation, gated, dropout)
        check_router(x, router, w1.num_experts)
        check_options(x, w1.num_experts, options)
        return moe_ffn_int8(x, router, w1, options)
    packed, weights = _experts(w1, b1, w2, b2, gated)
    num_experts, _, hidden = weights.w1.shape
    check_rows(x, hidden, weights.w1)
    check_router(x, router, num_experts)
    check_options(x, num_experts, options)
    path = _forced.get() or _choose(x, router, weights, options)
    if packed is not None and path == "cpu" and not _needs_plain(x, options):
        return moe_ffn_packed(x, router, packed, options)
    return _PATHS[path](x, router, weights, options)


def _choose(x: Tensor, router: Tensor | Routing, weights: ExpertWeights, options: MoeOptions) -> str:
    path = explain(x.device).path
    if path != "triton":
        return path
    from fewshard_kernels.moe_ffn.triton import supports

    return "triton" if supports(x, router, weights, options) is None else "reference"


def _experts(
    w1: Tensor | PackedExperts, b1: Tensor | None, w2: Tensor | None, b2: Tensor | None, gated: bool
) -> tuple[PackedExperts | None, ExpertWeights]:
    if isinstance(w1, PackedExperts):
        _alone(b1, w2, b2)
        if w1.gated != gated:
            raise ValueError(f"experts were packed with gated={w1.gated}, but the call says {gated}")
        return w1, w1.plain
    if w2 is None:
        raise ValueError("w2 is missing; only packed experts do without it")
    weights = ExpertWeights(w1, b1, w2, b2)
    check_weights(weights, gated)
    return None, weights


def _alone(*others: Tensor | None) -> None:
    if any(each is not None for each in others):
        raise ValueError("packed experts hold b1, w2 and b2 already; leave these out")


def _needs_plain(x: Tensor, options: MoeOptions) -> bool:
    """Whether the call needs gradients or dropout, which only the plain path supports."""
    return options.dropout > 0 or (x.requires_grad and torch.is_grad_enabled())


@contextmanager
def force_path(path: str) -> Iterator[None]:
    """Make every `moe_ffn` call in this context use `path`; for tests and benchmarks.

    Raises ValueError for an unknown path.

    >>> w1, w2 = torch.ones(1, 3, 2), torch.ones(1, 2, 3)
    >>> with force_path("reference"):
    ...     y, _ = moe_ffn(torch.ones(4, 2), torch.ones(1, 2), w1, None, w2, None)
    >>> y.shape
    torch.Size([4, 2])
    """
    if path not in _PATHS:
        raise ValueError(f"no moe_ffn path {path!r}; there are {', '.join(_PATHS)}")
    token = _forced.set(path)
    try:
        yield
    finally:
        _forced.reset(token)


def explain(device: torch.device) -> PathChoice:
    """The implementation that `moe_ffn` uses on `device`, and the reason as text.

    >>> explain(torch.device("cpu")).path
    'cpu'
    """
    if device.type == "cpu":
        return PathChoice(
            str(device), "cpu", "rows grouped by expert; packed products where experts are packed, else plain"
        )
    if device.type != "cuda":
        return PathChoice(str(device), "reference", f"no fused path for {device.type}; plain torch runs")
    if find_spec("triton") is None:
        return PathChoice(str(device), "reference", "triton is not installed; plain torch runs")
    return PathChoice(
        str(device), "triton", "fused kernels; plain torch for training and for layers they do not take"
    )
