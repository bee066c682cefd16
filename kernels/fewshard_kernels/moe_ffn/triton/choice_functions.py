"""Triton functions that choose the experts of a block of tokens, and weigh, count and rank the choices.

Called by `route_kernels.py`. A block has BLOCK_T tokens, BLOCK_E expert columns and BLOCK_K choice columns,
all powers of two.
"""

# Triton infers the types of jit functions' arguments when it compiles them.
# mypy: allow-untyped-defs, allow-incomplete-defs

import triton
import triton.language as tl


@triton.jit
def router_logits(
    x_ptr,
    router_ptr,
    token,
    T,
    stride_x,
    stride_router,
    H: tl.constexpr,
    E: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_E: tl.constexpr,
    BLOCK_H: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """x router^T in fp32, [BLOCK_T, BLOCK_E]; -inf in the columns beyond E."""
    e = tl.arange(0, BLOCK_E)
    # Rows beyond the last token or expert read the last one again, so the loop needs no mask.
    x_rows = x_ptr + tl.minimum(token, T - 1).to(tl.int64)[:, None] * stride_x
    router_rows = router_ptr + tl.minimum(e, E - 1)[None, :] * stride_router
    logits = tl.zeros([BLOCK_T, BLOCK_E], dtype=tl.float32)
    for start in range(0, H, BLOCK_H):
        h = start + tl.arange(0, BLOCK_H)
        x = tl.load(x_rows + h[None, :], mask=(h < H)[None, :], other=0.0).to(tl.float32)
        router = tl.load(router_rows + h[:, None], mask=(h < H)[:, None], other=0.0).to(tl.float32)
        logits = tl.dot(x, router, logits, input_precision=PRECISION)
    return tl.where((e < E)[None, :], logits, float("-inf"))


@triton.jit
def largest(logits, E: tl.constexpr, TOP_K: tl.constexpr, BLOCK_T: tl.constexpr, BLOCK_K: tl.constexpr):
    """The experts with the TOP_K largest logits of each row, [BLOCK_T, BLOCK_K]; the first wins ties."""
    e = tl.arange(0, logits.shape[1])[None, :]
    choice = tl.arange(0, BLOCK_K)[None, :]
    # A NaN counts as the largest, as in torch.topk: its token must select a real expert and yield NaN.
    logits = tl.where(logits == logits, logits, float("inf"))
    free = tl.broadcast_to(e < E, logits.shape)
    experts = tl.full([BLOCK_T, BLOCK_K], -1, dtype=tl.int32)
    for j in range(TOP_K):
        best = tl.max(tl.where(free, logits, float("-inf")), 1)[:, None]
        expert = tl.min(tl.where(free & (logits == best), e, E), 1)[:, None]
        experts = tl.where(choice == j, expert, experts)
        free = free & (e != expert)
    return experts


@triton.jit
def log_softmax(scores):
    """Log-softmax over the columns, and its log-partition [rows, 1]; columns of -inf contribute nothing."""
    top = tl.max(scores, 1)[:, None]
    # tl.max may drop a NaN, but the sum keeps it: such a row becomes all NaN, as in torch.
    log_z = top + tl.log(tl.sum(tl.exp(scores - top), 1)[:, None])
    return scores - log_z, log_z


@triton.jit
def column(matrix, j):
    """Column j of an integer matrix, as [rows, 1]."""
    return tl.sum(tl.where(tl.arange(0, matrix.shape[1])[None, :] == j, matrix, 0), 1)[:, None]


@triton.jit
def read_choices(
    weights_ptr, experts_ptr, token, kept, choice, stride_weights, stride_experts, E: tl.constexpr
):
    """Weights (fp32) and experts (int32) of a given routing, [BLOCK_T, BLOCK_K]; -1 for an invalid expert."""
    rows = token.to(tl.int64)[:, None]
    weights = tl.load(weights_ptr + rows * stride_weights + choice, mask=kept, other=0.0).to(tl.float32)
    given = tl.load(experts_ptr + rows * stride_experts + choice, mask=kept, other=-1)
    return weights, tl.where((given >= 0) & (given < E), given, -1).to(tl.int32)


@triton.jit
def score_log_probabilities(logits, SCORING: tl.constexpr):
    """Log-scores and the router's log-distribution (both shaped like `logits`), and log z [rows, 1]."""
    scores = logits
    if SCORING == "sigmoid":
        # log(sigmoid(z)) without overflow; -inf stays -inf, so columns beyond E stay excluded.
        scores = tl.minimum(logits, 0.0) - tl.log(1.0 + tl.exp(-tl.abs(logits)))
    log_p, log_z = log_softmax(scores)
    if SCORING == "sigmoid":
        _, log_z = log_softmax(logits)
    return scores, log_p, log_z


@triton.jit
def weigh_choices(
    scores, log_p, experts, TOP_K: tl.constexpr, SCORING: tl.constexpr, NORMALIZE: tl.constexpr
):
    """The weights of the chosen `experts`, fp32 [BLOCK_T, BLOCK_K]; 0 beyond TOP_K."""
    e = tl.arange(0, scores.shape[1])[None, :]
    choice = tl.arange(0, experts.shape[1])[None, :]
    source = log_p
    if SCORING == "sigmoid" or NORMALIZE or SCORING == "topk_softmax":
        source = scores
    chosen = tl.full(experts.shape, float("-inf"), dtype=tl.float32)
    for j in range(TOP_K):
        mine = e == column(experts, j)
        chosen = tl.where(choice == j, tl.sum(tl.where(mine, source, 0.0), 1)[:, None], chosen)
    if NORMALIZE or SCORING == "topk_softmax":
        # softmax(log s) = s / sum(s) serves both scorings and avoids dividing by a sum of zeros.
        chosen, _ = log_softmax(chosen)
    return tl.exp(chosen)


@triton.jit
def sum_distribution(log_p, log_z, alive, inside):
    """Sums over the tokens: probability of each expert [BLOCK_E], entropy, squared log z.

    `alive` [BLOCK_T, BLOCK_E] and `inside` [BLOCK_T, 1] are False beyond the last token.
    """
    p = tl.exp(log_p)
    squared = log_z * log_z
    # NaN occurs for a token with a NaN logit, which counts in the rows only, and for 0 * log 0, which is 0.
    p_sum = tl.sum(tl.where(alive & (p == p), p, 0.0), 0)
    entropies = p * log_p
    entropy = -tl.sum(tl.where(alive & (entropies == entropies), entropies, 0.0))
    return p_sum, entropy, tl.sum(tl.where(inside & (squared == squared), squared, 0.0))


@triton.jit
def sum_weights(weights, experts, alive, TOP_K: tl.constexpr):
    """The weights of a given routing, summed per expert over the tokens, [BLOCK_E]; NaN is skipped."""
    e = tl.arange(0, alive.shape[1])[None, :]
    choice = tl.arange(0, experts.shape[1])[None, :]
    p_sum = tl.zeros([alive.shape[1]], dtype=tl.float32)
    for j in range(TOP_K):
        weight = tl.sum(tl.where(choice == j, weights, 0.0), 1)[:, None]
        mine = (e == column(experts, j)) & alive & (weight == weight)
        p_sum += tl.sum(tl.where(mine, weight, 0.0), 0)
    return p_sum


@triton.jit
def count_and_rank(experts, alive, TOP_K: tl.constexpr):
    """Rows of each expert [BLOCK_E], and the rank of each pair among its expert's pairs [BLOCK_T, BLOCK_K].

    Ranks follow the pair order t * TOP_K + j; a given routing may name an expert twice for one token.
    """
    e = tl.arange(0, alive.shape[1])[None, :]
    choice = tl.arange(0, experts.shape[1])[None, :]
    counts = tl.zeros(alive.shape, dtype=tl.int32)
    for j in range(TOP_K):
        counts += ((e == column(experts, j)) & alive).to(tl.int32)
    earlier = tl.cumsum(counts, 0) - counts
    ranks = tl.zeros(experts.shape, dtype=tl.int32)
    for j in range(TOP_K):
        mine = e == column(experts, j)
        ranks = tl.where(choice == j, tl.sum(tl.where(mine, earlier, 0), 1)[:, None], ranks)
        earlier += mine.to(tl.int32)
    return tl.sum(counts, 0), ranks


@triton.jit
def leave_absent_out(mask_ptr, counts, experts, E: tl.constexpr, TOP_K: tl.constexpr):
    """Row counts of the experts on this shard [BLOCK_E], and `experts` with -1 for those that are absent."""
    e = tl.arange(0, counts.shape[0])
    choice = tl.arange(0, experts.shape[1])[None, :]
    on_shard = tl.load(mask_ptr + e, mask=e < E, other=0).to(tl.int32)
    for j in range(TOP_K):
        mine = e[None, :] == column(experts, j)
        away = tl.sum(tl.where(mine, on_shard[None, :], 0), 1)[:, None] == 0
        experts = tl.where((choice == j) & away, -1, experts)
    return counts * on_shard, experts
