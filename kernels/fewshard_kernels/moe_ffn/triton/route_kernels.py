"""Triton kernels that assign rows to experts and compute each row's position among its expert's rows.

Launched by `route.py`. Ranks come from counts, never from the return value of an atomic, which would depend
on the order in which blocks run. Block b of tokens writes its number of rows for each expert. The row of a
pair is then (rows of smaller experts) + (rows of earlier blocks for its expert) + (its rank within its
block): the same on every run, and equal to a stable sort.

Values that change with every call (tokens, tiles, blocks) are never specialised on: a layer compiles a
kernel once per block size, and not again while it serves.
"""

# Triton infers the types of jit functions' arguments when it compiles them.
# mypy: allow-untyped-defs, allow-incomplete-defs

import triton
import triton.language as tl

from fewshard_kernels.moe_ffn.triton.choice_functions import (
    column,
    count_and_rank,
    largest,
    leave_absent_out,
    read_choices,
    router_logits,
    score_log_probabilities,
    sum_distribution,
    sum_weights,
    weigh_choices,
)


@triton.jit
def place_rows(row_map_ptr, token, experts, ranks, first_row, T, TOP_K: tl.constexpr, BLOCK_E: tl.constexpr):
    """Write each pair t * TOP_K + j whose expert is present (not -1) into its sorted row.

    `experts`, `ranks` [BLOCK_T, BLOCK_K]; `first_row` [BLOCK_E]: first row of this block for each expert.
    """
    e = tl.arange(0, BLOCK_E)[None, :]
    for j in range(TOP_K):
        expert = column(experts, j)
        first = tl.sum(tl.where(e == expert, first_row[None, :], 0), 1)[:, None]
        here = (token[:, None] < T) & (expert >= 0)
        tl.store(row_map_ptr + first + column(ranks, j), token[:, None] * TOP_K + j, mask=here)


@triton.jit
def write_tiles(
    tiles_ptr, num_tiles, first_tile, end_tile, rows, offsets, BLOCK_M: tl.constexpr, CHUNK: tl.constexpr
):
    """Write tiles `first_tile` to `end_tile` - 1: expert (-1: no tile), first row, row after the last.

    `rows`, `offsets` [BLOCK_E]: rows of each expert, and rows of the experts before it. Each expert has
    cdiv(rows, BLOCK_M) tiles of its own: none spans two experts, and no row is padding. `tiles` is
    [3, num_tiles].
    """
    e = tl.arange(0, rows.shape[0])[None, :]
    tiles_each = (rows + BLOCK_M - 1) // BLOCK_M
    last = tl.cumsum(tiles_each, 0)
    shift = offsets - (last - tiles_each) * BLOCK_M
    start = first_tile
    while start < end_tile:
        tile = start + tl.arange(0, CHUNK)
        expert = tl.sum((tile[:, None] >= last[None, :]).to(tl.int32), 1)
        begin = tl.sum(tl.where(e == expert[:, None], shift[None, :] + tile[:, None] * BLOCK_M, 0), 1)
        end = tl.sum(tl.where(e == expert[:, None], (offsets + rows)[None, :], 0), 1)
        inside = tile < end_tile
        tl.store(tiles_ptr + tile, tl.where(expert < rows.shape[0], expert, -1), mask=inside)
        tl.store(tiles_ptr + num_tiles + tile, begin, mask=inside)
        tl.store(tiles_ptr + 2 * num_tiles + tile, tl.minimum(begin + BLOCK_M, end), mask=inside)
        start += CHUNK


@triton.jit(do_not_specialize=["T", "num_tiles"])
def route_kernel(
    x_ptr,
    router_ptr,
    given_weights_ptr,
    given_experts_ptr,
    mask_ptr,
    weights_ptr,
    experts_ptr,
    ranks_ptr,
    counts_ptr,
    probabilities_ptr,
    scalars_ptr,
    row_map_ptr,
    tiles_ptr,
    T,
    num_tiles,
    stride_x,
    stride_router,
    stride_given_weights,
    stride_given_experts,
    H: tl.constexpr,
    E: tl.constexpr,
    TOP_K: tl.constexpr,
    SCORING: tl.constexpr,
    NORMALIZE: tl.constexpr,
    SINGLE: tl.constexpr,
    BLOCK_M: tl.constexpr,
    TILE_CHUNK: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_E: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_H: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Route one block of tokens; with SINGLE it is the only block and also groups its rows.

    Writes weights fp32 [T, TOP_K], experts int32 [T, TOP_K] (-1 if not on this shard), ranks int32
    [T, TOP_K] (not with SINGLE), and row b of the tables counts [B, E], probabilities [B, E] and scalars
    [B, 2] (entropy, squared log z). With one block the tables are the totals.
    """
    block = tl.program_id(0)
    token = block * BLOCK_T + tl.arange(0, BLOCK_T)
    e = tl.arange(0, BLOCK_E)
    choice = tl.arange(0, BLOCK_K)[None, :]
    inside = token[:, None] < T
    kept = inside & (choice < TOP_K)
    alive = inside & (e < E)[None, :]

    if router_ptr is None:
        weights, experts = read_choices(
            given_weights_ptr,
            given_experts_ptr,
            token,
            kept,
            choice,
            stride_given_weights,
            stride_given_experts,
            E,
        )
        p_sum = sum_weights(weights, experts, alive, TOP_K)
        entropy = float("nan")
        squared = float("nan")
    else:
        logits = router_logits(
            x_ptr, router_ptr, token, T, stride_x, stride_router, H, E, BLOCK_T, BLOCK_E, BLOCK_H, PRECISION
        )
        scores, log_p, log_z = score_log_probabilities(logits, SCORING)
        experts = largest(logits, E, TOP_K, BLOCK_T, BLOCK_K)
        weights = weigh_choices(scores, log_p, experts, TOP_K, SCORING, NORMALIZE)
        p_sum, entropy, squared = sum_distribution(log_p, log_z, alive, inside)

    counts, ranks = count_and_rank(experts, alive, TOP_K)
    rows_here = counts
    if mask_ptr is not None:
        rows_here, experts = leave_absent_out(mask_ptr, counts, experts, E, TOP_K)

    pair = token[:, None] * TOP_K + choice
    tl.store(weights_ptr + pair, weights, mask=kept)
    tl.store(experts_ptr + pair, experts, mask=kept)
    tl.store(counts_ptr + block * E + e, counts, mask=e < E)
    tl.store(probabilities_ptr + block * E + e, p_sum, mask=e < E)
    tl.store(scalars_ptr + 2 * block, entropy)
    tl.store(scalars_ptr + 2 * block + 1, squared)
    if SINGLE:
        offsets = tl.cumsum(rows_here, 0) - rows_here
        place_rows(row_map_ptr, token, experts, ranks, offsets, T, TOP_K, BLOCK_E)
        write_tiles(tiles_ptr, num_tiles, 0, num_tiles, rows_here, offsets, BLOCK_M, TILE_CHUNK)
    else:
        tl.store(ranks_ptr + pair, ranks, mask=kept)


@triton.jit(do_not_specialize=["T", "num_blocks", "num_tiles", "tiles_each"])
def group_kernel(
    experts_ptr,
    ranks_ptr,
    mask_ptr,
    counts_ptr,
    probabilities_ptr,
    scalars_ptr,
    row_map_ptr,
    tiles_ptr,
    expert_rows_ptr,
    statistics_ptr,
    T,
    num_blocks,
    num_tiles,
    tiles_each,
    E: tl.constexpr,
    TOP_K: tl.constexpr,
    BLOCK_M: tl.constexpr,
    TILE_CHUNK: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_E: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_B: tl.constexpr,
):
    """Place the rows of one block of tokens, and write this program's share of the tiles.

    Every program sums the whole table of counts itself: the table is small and cached, and a separate kernel
    for the prefix sums would cost a launch. Program 0 also writes the statistics: expert_rows int64 [E], and
    fp32 [E + 2] with the probability of each expert, the entropy and the squared log z.
    """
    block = tl.program_id(0)
    e = tl.arange(0, BLOCK_E)
    totals = tl.zeros([BLOCK_E], dtype=tl.int32)
    before = tl.zeros([BLOCK_E], dtype=tl.int32)
    start = 0
    while start < num_blocks:
        b = start + tl.arange(0, BLOCK_B)[:, None]
        counts = tl.load(counts_ptr + b * E + e[None, :], mask=(b < num_blocks) & (e < E)[None, :], other=0)
        totals += tl.sum(counts, 0)
        before += tl.sum(tl.where(b < block, counts, 0), 0)
        start += BLOCK_B

    rows = totals
    if mask_ptr is not None:
        rows = totals * tl.load(mask_ptr + e, mask=e < E, other=0).to(tl.int32)
    offsets = tl.cumsum(rows, 0) - rows
    token = block * BLOCK_T + tl.arange(0, BLOCK_T)
    choice = tl.arange(0, BLOCK_K)[None, :]
    pair = token[:, None] * TOP_K + choice
    kept = (token[:, None] < T) & (choice < TOP_K)
    experts = tl.load(experts_ptr + pair, mask=kept, other=-1)
    ranks = tl.load(ranks_ptr + pair, mask=kept, other=0)
    place_rows(row_map_ptr, token, experts, ranks, offsets + before, T, TOP_K, BLOCK_E)
    first_tile = block * tiles_each
    end_tile = tl.minimum(first_tile + tiles_each, num_tiles)
    write_tiles(tiles_ptr, num_tiles, first_tile, end_tile, rows, offsets, BLOCK_M, TILE_CHUNK)

    if block == 0:
        p_sum = tl.zeros([BLOCK_E], dtype=tl.float32)
        scalars = tl.zeros([2], dtype=tl.float32)
        two = tl.arange(0, 2)[None, :]
        start = 0
        while start < num_blocks:
            b = start + tl.arange(0, BLOCK_B)[:, None]
            inside = (b < num_blocks) & (e < E)[None, :]
            p_sum += tl.sum(tl.load(probabilities_ptr + b * E + e[None, :], mask=inside, other=0.0), 0)
            scalars += tl.sum(tl.load(scalars_ptr + b * 2 + two, mask=b < num_blocks, other=0.0), 0)
            start += BLOCK_B
        tl.store(expert_rows_ptr + e, totals, mask=e < E)
        tl.store(statistics_ptr + e, p_sum, mask=e < E)
        tl.store(statistics_ptr + E + tl.arange(0, 2), scalars)
