"""`moe_ffn` on a GPU: route, group, two products, combine, in three to five kernel launches.

Called by `moe_ffn`. The host never waits for the device and no shape depends on data, so a CUDA graph can
capture the whole call.
"""

import torch
from torch import Tensor

from fewshard_kernels.moe_ffn.options import ExpertWeights, MoeOptions, Routing
from fewshard_kernels.moe_ffn.routing import MoeStats
from fewshard_kernels.moe_ffn.tiles import LayerShape, Tiles, choose_tiles, rows_bucket
from fewshard_kernels.moe_ffn.triton.experts import INTERPRETED, combine, multiply_rows
from fewshard_kernels.moe_ffn.triton.route import route_rows, unit_stride

MAX_EXPERTS = 256
MAX_TOP_K = 16
MAX_COMBINED_HIDDEN = 16384
_MAX_ROWS = 2**31 - 1


def moe_ffn_triton(
    x: Tensor, router: Tensor | Routing, weights: ExpertWeights, options: MoeOptions
) -> tuple[Tensor, MoeStats]:
    """Same result as `moe_ffn_reference`, but a token's expert rows are rounded before their fp32 sum.

    The arguments must have passed the checks of `moe_ffn`. Raises ValueError where `supports` gives a reason.
    Equal inputs give equal bits on every run. A given expert outside 0..E-1 contributes nothing and is not
    counted.
    """
    reason = supports(x, router, weights, options)
    if reason is not None:
        raise ValueError(f"the triton path cannot run this layer: {reason}")
    if x.shape[0] == 0:
        return torch.empty_like(x), _empty_stats(router, weights.num_experts, x.device)
    x = unit_stride(x)
    tiles = tiles_for(x, weights, options)
    routed = route_rows(x, router, weights.num_experts, options, tiles.block_m)
    rows = multiply_rows(x, weights, routed, options, tiles)
    # A given routing may name unknown experts and a mask hides some: the rows of those were not written.
    partial = options.expert_mask is not None or isinstance(router, Routing)
    if options.top_k == 1 and not partial and options.residual is None:
        return rows, routed.stats
    return combine(rows, routed, options, partial), routed.stats


def supports(x: Tensor, router: Tensor | Routing, weights: ExpertWeights, options: MoeOptions) -> str | None:
    """The reason why the Triton path cannot run this call, or None if it can. Never waits for the device."""
    return _no_device(x) or _no_training(x, router, weights, options) or _no_shape(x, weights, options)


def tiles_for(x: Tensor, weights: ExpertWeights, options: MoeOptions) -> Tiles:
    """The tiles of this call; they depend on shapes, dtypes and the device, never on values."""
    shape = LayerShape(
        capability=_capability(x.device),
        dtype=x.dtype,
        hidden=x.shape[1],
        width=weights.w2.shape[2],
        num_experts=weights.num_experts,
        top_k=options.top_k,
        gated=options.gated,
    )
    return choose_tiles(shape, rows_bucket(x.shape[0], shape))


def _no_device(x: Tensor) -> str | None:
    if INTERPRETED:
        return None
    if x.device.type != "cuda":
        return f"x is on {x.device}, and compiled kernels need a GPU"
    major, minor = _capability(x.device)
    return None if major >= 8 else f"it needs compute capability 8.0, this GPU has {major}.{minor}"


def _no_training(
    x: Tensor, router: Tensor | Routing, weights: ExpertWeights, options: MoeOptions
) -> str | None:
    if options.dropout > 0:
        return "it has no dropout, which only training asks for"
    tensors = (x, *((router,) if isinstance(router, Tensor) else router), *weights, options.residual)
    tensors += options.norm[:2] if options.norm is not None else ()
    if torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors):
        return "it has no backward, and a gradient is asked for"
    return None


def _no_shape(x: Tensor, weights: ExpertWeights, options: MoeOptions) -> str | None:
    if weights.num_experts > MAX_EXPERTS:
        return f"it routes among at most {MAX_EXPERTS} experts, not {weights.num_experts}"
    if options.top_k > MAX_TOP_K:
        return f"it takes at most {MAX_TOP_K} experts a row, not {options.top_k}"
    if x.shape[1] > MAX_COMBINED_HIDDEN:
        return f"it sums rows of at most {MAX_COMBINED_HIDDEN} values, not {x.shape[1]}"
    if x.shape[1] == 0 or weights.w2.shape[2] == 0:
        return "the layer has no values"
    if x.shape[0] * options.top_k > _MAX_ROWS:
        return f"T * top_k is beyond {_MAX_ROWS}"
    if any(t is not None and t.stride(-1) != 1 for t in weights):
        return "the last dimension of every weight must be contiguous"
    return None


def _capability(device: torch.device) -> tuple[int, int]:
    """Compute capability of `device`; interpreted kernels report that of a Hopper GPU."""
    return torch.cuda.get_device_capability(device) if device.type == "cuda" else (9, 0)


def _empty_stats(router: Tensor | Routing, num_experts: int, device: torch.device) -> MoeStats:
    sums = torch.zeros(num_experts + 2, dtype=torch.float32, device=device)
    if isinstance(router, Routing):
        sums[num_experts:] = float("nan")
    rows = torch.zeros(num_experts, dtype=torch.int64, device=device)
    return MoeStats(rows, sums[:num_experts], sums[num_experts], sums[num_experts + 1])
