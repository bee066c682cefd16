"""Triton kernels that multiply rows by their experts' weights and sum each token's expert outputs.

Launched by `experts.py`. The sizes of a layer are compile-time constants: a model has few distinct layers,
and masks that a size makes unnecessary are not compiled.
"""

# Triton infers the types of jit functions' arguments when it compiles them.
# mypy: allow-untyped-defs, allow-incomplete-defs

import triton
import triton.language as tl


@triton.jit
def activate(x, ACTIVATION: tl.constexpr):
    """The named activation of fp32 values; NaN stays NaN."""
    if ACTIVATION == "gelu":
        y = 0.5 * x * (1.0 + tl.math.erf(x * 0.7071067811865476))
    elif ACTIVATION == "gelu_pytorch_tanh":
        # tanh(z) = 2 sigmoid(2 z) - 1, and so 0.5 x (1 + tanh(z)) = x sigmoid(2 z).
        y = x * tl.sigmoid(1.5957691216057308 * (x + 0.044715 * x * x * x))
    elif ACTIVATION == "silu":
        y = x * tl.sigmoid(x)
    else:
        tl.static_assert(ACTIVATION == "relu")
        y = tl.where(x < 0.0, 0.0, x)
    return y


@triton.jit
def add_bias(acc, bias_ptr, expert, stride_be, n, N: tl.constexpr):
    """acc + bias[expert, n] in fp32; indices `n` may exceed N."""
    bias = tl.load(bias_ptr + expert * stride_be + n, mask=n < N, other=0.0)
    return acc + bias.to(tl.float32)[None, :]


@triton.jit
def tile_of_program(num_tiles, NUM_N: tl.constexpr, GROUP_M: tl.constexpr):
    """The row tile and the column tile that this program computes.

    GROUP_M row tiles go through all column tiles before the next group starts. Tiles of one expert are
    adjacent, so its weights are still in the cache for the next of them.
    """
    program = tl.program_id(0)
    group = program // (GROUP_M * NUM_N)
    first = group * GROUP_M
    size = tl.minimum(num_tiles - first, GROUP_M)
    within = program - group * GROUP_M * NUM_N
    return first + within % size, within // size


@triton.jit(do_not_specialize=["num_tiles"])
def expert_gemm_kernel(
    a_ptr,
    w_ptr,
    bias_ptr,
    out_ptr,
    row_map_ptr,
    tiles_ptr,
    weights_ptr,
    num_tiles,
    stride_am,
    stride_we,
    stride_wn,
    stride_be,
    stride_om,
    N: tl.constexpr,
    K: tl.constexpr,
    TOP_K: tl.constexpr,
    ACTIVATION: tl.constexpr,
    GATED: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    GROUP_M: tl.constexpr,
    UPCAST: tl.constexpr,
):
    """One tile of an expert's first product (if ACTIVATION is given) or second product, summed in fp32.

    First:  out[row] = act(a[token of row] W[e]^T + b[e]), gated with the rows N.. of W[e] and b[e] as well.
            `a` is x [T, K], gathered while it is loaded; `out` [R, N] has its rows sorted by expert.
    Second: out[pair of row] = p[pair] * (a[row] W[e]^T + b[e]). `a` [R, K] is sorted, `out` [R, N] is not.
    """
    m_tile, n_tile = tile_of_program(num_tiles, tl.cdiv(N, BLOCK_N), GROUP_M)
    expert = tl.load(tiles_ptr + m_tile).to(tl.int64)
    if expert < 0:
        return
    begin = tl.load(tiles_ptr + num_tiles + m_tile)
    end = tl.load(tiles_ptr + 2 * num_tiles + m_tile)
    row = begin + tl.arange(0, BLOCK_M)
    # Rows beyond the expert's last recompute the tile's first row, so loads need no mask; never stored.
    row = tl.where(row < end, row, begin)
    pair = tl.load(row_map_ptr + row)
    if ACTIVATION is not None:
        source = pair // TOP_K
        target = row
    else:
        source = row
        target = pair

    n = n_tile * BLOCK_N + tl.arange(0, BLOCK_N)
    k = tl.arange(0, BLOCK_K)
    a_ptrs = a_ptr + source.to(tl.int64)[:, None] * stride_am + k[None, :]
    # Columns beyond N recompute the last column, so loads need no mask; never stored.
    w_row = tl.minimum(n, N - 1).to(tl.int64)[None, :]
    w_ptrs = w_ptr + expert * stride_we + w_row * stride_wn + k[:, None]
    acc = tl.zeros([BLOCK_M, BLOCK_N], dtype=tl.float32)
    if GATED:
        up_ptrs = w_ptr + expert * stride_we + (w_row + N) * stride_wn + k[:, None]
        up = tl.zeros([BLOCK_M, BLOCK_N], dtype=tl.float32)
    for start in range(0, K, BLOCK_K):
        if K % BLOCK_K == 0:
            a = tl.load(a_ptrs)
            w = tl.load(w_ptrs)
        else:
            a = tl.load(a_ptrs, mask=(start + k < K)[None, :], other=0.0)
            w = tl.load(w_ptrs, mask=(start + k < K)[:, None], other=0.0)
        if UPCAST:
            a = a.to(tl.float32)
            w = w.to(tl.float32)
        acc = tl.dot(a, w, acc, input_precision="ieee")
        if GATED:
            if K % BLOCK_K == 0:
                u = tl.load(up_ptrs)
            else:
                u = tl.load(up_ptrs, mask=(start + k < K)[:, None], other=0.0)
            if UPCAST:
                u = u.to(tl.float32)
            up = tl.dot(a, u, up, input_precision="ieee")
            up_ptrs += BLOCK_K
        a_ptrs += BLOCK_K
        w_ptrs += BLOCK_K

    if bias_ptr is not None:
        acc = add_bias(acc, bias_ptr, expert, stride_be, n, N)
        if GATED:
            up = add_bias(up, bias_ptr + N, expert, stride_be, n, N)
    if ACTIVATION is not None:
        acc = activate(acc, ACTIVATION)
        if GATED:
            acc = acc * up
    else:
        acc = acc * tl.load(weights_ptr + pair)[:, None]
    out_ptrs = out_ptr + target.to(tl.int64)[:, None] * stride_om + n[None, :]
    valid = begin + tl.arange(0, BLOCK_M) < end
    tl.store(out_ptrs, acc.to(out_ptr.dtype.element_ty), mask=valid[:, None] & (n < N)[None, :])


@triton.jit(do_not_specialize=["T"])
def combine_kernel(
    rows_ptr,
    experts_ptr,
    residual_ptr,
    norm_weight_ptr,
    norm_bias_ptr,
    y_ptr,
    T,
    stride_rm,
    eps,
    H: tl.constexpr,
    TOP_K: tl.constexpr,
    PARTIAL: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_H: tl.constexpr,
):
    """y[t] = LayerNorm(residual[t] + sum over j of rows[t * TOP_K + j]); steps without arguments are skipped.

    Sums in fp32, over j in order, without atomics: every run gives the same bits. With PARTIAL, rows of pairs
    whose expert is -1 were never computed and are not read.
    """
    token = tl.program_id(0) * BLOCK_T + tl.arange(0, BLOCK_T)
    h = tl.arange(0, BLOCK_H)[None, :]
    inside = (token < T)[:, None] & (h < H)
    long_token = token.to(tl.int64)[:, None]
    y = tl.zeros([BLOCK_T, BLOCK_H], dtype=tl.float32)
    for j in tl.static_range(TOP_K):
        here = inside
        if PARTIAL:
            expert = tl.load(experts_ptr + token * TOP_K + j, mask=token < T, other=-1)
            here = here & (expert >= 0)[:, None]
        y += tl.load(rows_ptr + (long_token * TOP_K + j) * H + h, mask=here, other=0.0).to(tl.float32)
    if residual_ptr is not None:
        y += tl.load(residual_ptr + long_token * stride_rm + h, mask=inside, other=0.0).to(tl.float32)
    if norm_weight_ptr is not None:
        mean = tl.sum(y, 1)[:, None] / H
        centred = tl.where(h < H, y - mean, 0.0)
        variance = tl.sum(centred * centred, 1)[:, None] / H
        weight = tl.load(norm_weight_ptr + h, mask=h < H, other=0.0).to(tl.float32)
        y = centred / tl.sqrt(variance + eps) * weight
        if norm_bias_ptr is not None:
            y += tl.load(norm_bias_ptr + h, mask=h < H, other=0.0).to(tl.float32)
    tl.store(y_ptr + long_token * H + h, y.to(y_ptr.dtype.element_ty), mask=inside)
