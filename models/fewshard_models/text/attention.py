"""Attention over packed tokens, with no padding: one SDPA call for each run of equally long items."""

import torch
import torch.nn.functional as F
from torch import Tensor


def packed_attention(qkv: Tensor, runs: list[tuple[int, int]], num_heads: int) -> Tensor:
    """Self-attention within each item.

    `qkv` [T, 3 * num_heads * d], items laid end to end; `runs` as `PackedTokens.runs`.
    Returns [T, num_heads * d].
    Measured on two cores at 64 sentences of SST-2's lengths: as fast as padded buckets, and an item's
    arithmetic does not depend on its neighbours' lengths.
    """
    width = qkv.shape[1] // 3
    head_dim = width // num_heads
    outputs = []
    for part, (num_items, length) in zip(qkv.split([n * length for n, length in runs]), runs, strict=True):
        query, key, value = part.view(num_items, length, 3, num_heads, head_dim).permute(2, 0, 3, 1, 4)
        context = F.scaled_dot_product_attention(query, key, value)
        outputs.append(context.transpose(1, 2).reshape(num_items * length, width))
    return torch.cat(outputs)
