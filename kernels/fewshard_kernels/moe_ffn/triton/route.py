"""Launches the routing kernels, which group rows by expert and compute the statistics.

Two launches, or one if a single block holds all tokens. Nothing is copied back to the host.
"""

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fewshard_kernels.moe_ffn.options import MoeOptions, Routing
from fewshard_kernels.moe_ffn.routing import MoeStats
from fewshard_kernels.moe_ffn.tiles import ceil_div, power_of_two
from fewshard_kernels.moe_ffn.triton.route_kernels import group_kernel, route_kernel

SINGLE_BLOCK_TOKENS = 64
# Every block reads the whole table of counts: many tokens take few large blocks, few tokens many small ones.
_BLOCK_TOKENS = ((2048, 16), (8192, 32), (32768, 64))
_MOST_BLOCK_TOKENS = 128
_TILE_CHUNK = 16
# Limits of a block: logits that fit in registers, and values of one product step that fit in shared memory.
_MAX_BLOCK_LOGITS = 8192
_MAX_BLOCK_VALUES = 8192


class Routed(NamedTuple):
    """Rows grouped by expert. Pair t * top_k + j is the j-th choice of token t; R = T * top_k pairs in all.

    weights: fp32 [T, top_k].
    experts: int32 [T, top_k]; -1 if the expert is not on this shard.
    row_map: int32 [R], the pair in each sorted row: a stable sort by expert of the pairs that are present.
    tiles: int32 [3, tiles]: expert (-1: no such tile), first sorted row, row after the last.
    stats: the routing statistics.
    """

    weights: Tensor
    experts: Tensor
    row_map: Tensor
    tiles: Tensor
    stats: MoeStats


class _Tables(NamedTuple):
    """Intermediate tables through which the B blocks communicate.

    ranks: int32 [T, top_k], rank of each pair within its block and expert.
    counts: [B, E], rows of each expert in each block.
    sums: fp32, probabilities [B, E], then scalars [B, 2].
    statistics: fp32 [E + 2], the totals of `sums`.
    With one block, `counts` and `sums` hold the totals themselves.
    """

    ranks: Tensor
    counts: Tensor
    sums: Tensor
    statistics: Tensor


@dataclass(frozen=True, slots=True)
class _Plan:
    """Sizes of one routing. They depend on shapes only, so every replay of a CUDA graph uses the same."""

    num_tokens: int
    hidden: int
    num_experts: int
    top_k: int
    block_m: int

    @property
    def block_t(self) -> int:
        if self.num_tokens <= SINGLE_BLOCK_TOKENS:
            wished = max(16, power_of_two(self.num_tokens))
        else:
            sizes = (block for limit, block in _BLOCK_TOKENS if self.num_tokens <= limit)
            wished = next(sizes, _MOST_BLOCK_TOKENS)
        return min(wished, _MAX_BLOCK_LOGITS // self.block_e)

    @property
    def block_h(self) -> int:
        """Depth of a block of rows and of the router, such that both fit in shared memory twice."""
        fitting = power_of_two(1 + _MAX_BLOCK_VALUES // (self.block_t + self.block_e)) // 2
        return max(16, min(128, fitting, power_of_two(self.hidden)))

    @property
    def block_e(self) -> int:
        return max(16, power_of_two(self.num_experts))

    @property
    def num_blocks(self) -> int:
        return ceil_div(self.num_tokens, self.block_t)

    @property
    def num_tiles(self) -> int:
        return max_tiles(self.num_tokens * self.top_k, self.num_experts, self.block_m)


def max_tiles(num_rows: int, num_experts: int, block_m: int) -> int:
    """The maximum number of tiles of `block_m` rows that `num_rows` can need, for any distribution.

    Experts share no tile: the worst case is E - 1 experts with one row each and one expert with the rest.
    """
    if num_rows <= num_experts:
        return num_rows
    return ceil_div(num_rows - num_experts + 1, block_m) + num_experts - 1


def route_rows(
    x: Tensor, router: Tensor | Routing, num_experts: int, options: MoeOptions, block_m: int
) -> Routed:
    """Route the rows of `x` [T, H], T >= 1, and group them in tiles of `block_m` rows.

    Weights, experts and statistics equal those of `routing.route`. The first expert wins ties.
    """
    plan = _Plan(x.shape[0], x.shape[1], num_experts, options.top_k, block_m)
    routed, tables = _allocate(plan, x.device)
    shared = _shared_arguments(plan, routed, tables, options)
    route_kernel[(plan.num_blocks,)](
        **_inputs(x, router),
        weights_ptr=routed.weights,
        H=x.shape[1],
        SCORING=options.scoring,
        NORMALIZE=options.normalize,
        SINGLE=plan.num_blocks == 1,
        BLOCK_H=plan.block_h,
        PRECISION=_precision(x),
        **shared,
    )
    if plan.num_blocks > 1:
        group_kernel[(plan.num_blocks,)](
            expert_rows_ptr=routed.stats.expert_rows,
            statistics_ptr=tables.statistics,
            num_blocks=plan.num_blocks,
            tiles_each=_TILE_CHUNK * ceil_div(plan.num_tiles, _TILE_CHUNK * plan.num_blocks),
            BLOCK_B=max(8, min(64, 4096 // plan.block_e)),
            **shared,
        )
    return routed


def _allocate(plan: _Plan, device: torch.device) -> tuple[Routed, _Tables]:
    num_experts, pairs = plan.num_experts, (plan.num_tokens, plan.top_k)
    expert_rows = torch.empty(num_experts, dtype=torch.int64, device=device)
    statistics = torch.empty(num_experts + 2, dtype=torch.float32, device=device)
    weights = torch.empty(pairs, dtype=torch.float32, device=device)
    experts, ranks = torch.empty((2, *pairs), dtype=torch.int32, device=device)
    row_map = torch.empty(plan.num_tokens * plan.top_k, dtype=torch.int32, device=device)
    tiles = torch.empty((3, plan.num_tiles), dtype=torch.int32, device=device)
    entropy, squared_log_z = statistics[num_experts:]
    stats = MoeStats(expert_rows, statistics[:num_experts], entropy, squared_log_z)
    tables = _Tables(ranks, expert_rows, statistics, statistics)
    if plan.num_blocks > 1:
        counts = torch.empty((plan.num_blocks, num_experts), dtype=torch.int32, device=device)
        sums = torch.empty(plan.num_blocks * (num_experts + 2), dtype=torch.float32, device=device)
        tables = _Tables(ranks, counts, sums, statistics)
    return Routed(weights, experts, row_map, tiles, stats), tables


def _precision(x: Tensor) -> str:
    """Precision of the router's product.

    A 16-bit row is exact in tf32. Three tensor-core products, two of them with the part of the router that
    tf32 drops, therefore reach fp32's accuracy in a fraction of the time.
    """
    return "ieee" if x.dtype == torch.float32 else "tf32x3"


def _inputs(x: Tensor, router: Tensor | Routing) -> dict[str, Any]:
    """Arguments of `route_kernel` for the source of weights and experts; those that are unused are None."""
    if isinstance(router, Routing):
        return _matrices(x=None, router=None, given_weights=router.weights, given_experts=router.experts)
    return _matrices(x=x, router=router, given_weights=None, given_experts=None)


def _matrices(**matrices: Tensor | None) -> dict[str, Any]:
    arguments: dict[str, Any] = {}
    for name, matrix in matrices.items():
        rows = None if matrix is None else unit_stride(matrix)
        arguments[f"{name}_ptr"] = rows
        arguments[f"stride_{name}"] = 0 if rows is None else rows.stride(0)
    return arguments


def _shared_arguments(plan: _Plan, routed: Routed, tables: _Tables, options: MoeOptions) -> dict[str, Any]:
    """Arguments common to both kernels."""
    table_size = plan.num_blocks * plan.num_experts
    return {
        "mask_ptr": options.expert_mask,
        "experts_ptr": routed.experts,
        "ranks_ptr": tables.ranks,
        "counts_ptr": tables.counts,
        "probabilities_ptr": tables.sums[:table_size],
        "scalars_ptr": tables.sums[table_size:],
        "row_map_ptr": routed.row_map,
        "tiles_ptr": routed.tiles,
        "T": plan.num_tokens,
        "num_tiles": plan.num_tiles,
        "E": plan.num_experts,
        "TOP_K": plan.top_k,
        "BLOCK_M": plan.block_m,
        "TILE_CHUNK": _TILE_CHUNK,
        "BLOCK_T": plan.block_t,
        "BLOCK_E": plan.block_e,
        "BLOCK_K": power_of_two(plan.top_k),
        "num_warps": 8 if plan.block_t * plan.block_e >= 1024 else 4,
    }


def unit_stride(matrix: Tensor) -> Tensor:
    """The matrix itself if its rows are contiguous, else a contiguous copy."""
    return matrix if matrix.stride(1) == 1 else matrix.contiguous()
