"""Launches the expert kernels: two products over rows grouped by expert, and the sum of each token's rows."""

import triton
from torch import Tensor

from fewshard_kernels.moe_ffn.options import ExpertWeights, MoeOptions
from fewshard_kernels.moe_ffn.tiles import GemmTile, Tiles, ceil_div, power_of_two
from fewshard_kernels.moe_ffn.triton.expert_kernels import combine_kernel, expert_gemm_kernel
from fewshard_kernels.moe_ffn.triton.route import Routed, unit_stride

# Under TRITON_INTERPRET=1 a product of bf16 tiles is wrong; a product of fp32 tiles is right.
INTERPRETED = not isinstance(expert_gemm_kernel, triton.JITFunction)
# Values per program of the combine kernel: enough loads in flight, few enough to fit in registers.
_COMBINE_VALUES = 4096


def multiply_rows(
    x: Tensor, weights: ExpertWeights, routed: Routed, options: MoeOptions, tiles: Tiles
) -> Tensor:
    """p * (act(x W1[e]^T + b1[e]) W2[e]^T + b2[e]) for every pair whose expert is present, [T * top_k, H].

    Row t * top_k + j belongs to the j-th expert of token t. Rows of pairs with an absent expert are not
    written.
    """
    hidden = first_product(x, weights, routed, options, tiles.block_m, tiles.first)
    return second_product(hidden, weights, routed, options, tiles.block_m, tiles.second)


def first_product(
    x: Tensor, weights: ExpertWeights, routed: Routed, options: MoeOptions, block_m: int, tile: GemmTile
) -> Tensor:
    """act(x W1[e]^T + b1[e]) or its gated form, [T * top_k, I], in the order of `routed.row_map`."""
    hidden = x.new_empty((routed.row_map.shape[0], weights.w2.shape[2]))
    activation = options.activation
    _launch(x, weights.w1, weights.b1, hidden, routed, block_m, tile, activation, options.gated)
    return hidden


def second_product(
    hidden: Tensor, weights: ExpertWeights, routed: Routed, options: MoeOptions, block_m: int, tile: GemmTile
) -> Tensor:
    """p * (hidden W2[e]^T + b2[e]), [T * top_k, H], in pair order."""
    rows = hidden.new_empty((routed.row_map.shape[0], weights.w2.shape[1]))
    _launch(hidden, weights.w2, weights.b2, rows, routed, block_m, tile, activation=None, gated=False)
    return rows


def combine(rows: Tensor, routed: Routed, options: MoeOptions, partial: bool) -> Tensor:
    """LayerNorm(residual + the sum of each token's rows), [T, H]; steps that `options` lacks are skipped.

    `partial`: some rows may belong to pairs with an absent expert and hold undefined values.
    """
    num_tokens, hidden = routed.experts.shape[0], rows.shape[1]
    y = rows.new_empty((num_tokens, hidden))
    block_h = power_of_two(hidden)
    block_t = max(1, min(16, _COMBINE_VALUES // block_h))
    residual = None if options.residual is None else unit_stride(options.residual)
    norm = options.norm
    combine_kernel[(ceil_div(num_tokens, block_t),)](
        rows_ptr=rows,
        experts_ptr=routed.experts,
        residual_ptr=residual,
        norm_weight_ptr=None if norm is None else norm.weight.contiguous(),
        norm_bias_ptr=None if norm is None or norm.bias is None else norm.bias.contiguous(),
        y_ptr=y,
        T=num_tokens,
        stride_rm=0 if residual is None else residual.stride(0),
        eps=0.0 if norm is None else norm.eps,
        H=hidden,
        TOP_K=options.top_k,
        PARTIAL=partial,
        BLOCK_T=block_t,
        BLOCK_H=block_h,
        num_warps=8 if block_h > 4096 else 4,
    )
    return y


def _launch(
    a: Tensor,
    w: Tensor,
    bias: Tensor | None,
    out: Tensor,
    routed: Routed,
    block_m: int,
    tile: GemmTile,
    activation: str | None,
    gated: bool,
) -> None:
    num_tiles, width = routed.tiles.shape[1], out.shape[1]
    expert_gemm_kernel[(num_tiles * ceil_div(width, tile.block_n),)](
        a_ptr=a,
        w_ptr=w,
        bias_ptr=bias,
        out_ptr=out,
        row_map_ptr=routed.row_map,
        tiles_ptr=routed.tiles,
        weights_ptr=routed.weights,
        num_tiles=num_tiles,
        stride_am=a.stride(0),
        stride_we=w.stride(0),
        stride_wn=w.stride(1),
        stride_be=0 if bias is None else bias.stride(0),
        stride_om=out.stride(0),
        N=width,
        K=a.shape[1],
        TOP_K=routed.experts.shape[1],
        ACTIVATION=activation,
        GATED=gated,
        BLOCK_M=block_m,
        BLOCK_N=tile.block_n,
        BLOCK_K=tile.block_k,
        GROUP_M=tile.group_m,
        UPCAST=INTERPRETED,
        num_warps=tile.num_warps,
        num_stages=tile.num_stages,
    )
