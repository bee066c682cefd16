"""Attention over packed tokens: one SDPA call for each group of items of equal or padded length."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

import torch
import torch.nn.functional as F
from torch import Tensor

_LANES = 16
_CHEAP_REST = 3
_FEW_TOKENS = 256


@dataclass(frozen=True, slots=True)
class Group:
    """Adjacent items that share one attention call.

    num_items: number of items.
    length: rows of each item.
    mask: bool [num_items, 1, 1, length], True for an item's own rows; None if all are.
    """

    num_items: int
    length: int
    mask: Tensor | None = None


@dataclass(frozen=True, slots=True)
class AttentionLayout:
    """Layout of a batch for attention, computed once for all layers.

    groups: the attention calls.
    rows: int64 [P], the packed row at each row of the groups; None unless items are padded.
    back: int64 [T], the row in the groups of each packed row; None unless items are padded.
    """

    groups: tuple[Group, ...]
    rows: Tensor | None = None
    back: Tensor | None = None

    @property
    def num_rows(self) -> int:
        """Number of rows in the groups: T, or P if items are padded."""
        return sum(group.num_items * group.length for group in self.groups)


def attention_layout(lengths: Sequence[int], device: torch.device) -> AttentionLayout:
    """The layout of concatenated items. Equal neighbours share a call, so callers sort by length.

    On a CPU without gradients, items are padded to `padded_length`: torch's SDPA takes two and a half times
    as long for 31 tokens as for 32, since its softmax handles the rest after whole vectors one by one
    (docs/log.md). In small batches padding costs more than it saves.
    """
    pads = device.type == "cpu" and not torch.is_grad_enabled() and sum(lengths) >= _FEW_TOKENS
    runs = [(length, list(group)) for length, group in groupby(lengths, key=padded_length if pads else int)]
    if all(own == length for length, items in runs for own in items):
        return AttentionLayout(tuple(Group(len(items), length) for length, items in runs))
    groups, rows, back, start, padded_start = [], [], [], 0, 0
    for length, items in runs:
        own = torch.tensor(items)[:, None]
        starts = start + own.cumsum(0) - own
        column = torch.arange(length)[None]
        is_own = column < own
        rows.append((starts + torch.where(is_own, column, 0)).flatten())
        back.append(padded_start + is_own.flatten().nonzero().flatten())
        groups.append(Group(len(items), length, None if bool(is_own.all()) else is_own[:, None, None]))
        start, padded_start = start + sum(items), padded_start + is_own.numel()
    return AttentionLayout(tuple(groups), torch.cat(rows), torch.cat(back))


def padded_length(length: int) -> int:
    """`length` rounded up to whole vectors, unless the remainder is small enough to be cheaper as it is."""
    return length if length % _LANES <= _CHEAP_REST else -(-length // _LANES) * _LANES


def packed_attention(qkv: Tensor, layout: AttentionLayout, num_heads: int) -> Tensor:
    """Self-attention within each item.

    `qkv` [R, 3 * num_heads * d], with the layout's T rows first. Returns [R, num_heads * d], with zeros in
    rows beyond T. With gradients on a CPU it runs in fp32: the backward pass of torch's SDPA takes ten times
    as long in bf16 (docs/log.md).
    """
    if qkv.requires_grad and qkv.device.type == "cpu":
        with torch.autocast("cpu", enabled=False):
            return _attend_groups(qkv.float(), layout, num_heads).to(qkv.dtype)
    return _attend_groups(qkv, layout, num_heads)


def _attend_groups(qkv: Tensor, layout: AttentionLayout, num_heads: int) -> Tensor:
    if not layout.groups:
        return torch.zeros_like(qkv[:, : qkv.shape[1] // 3])
    if layout.rows is None and len(layout.groups) == 1 and layout.num_rows == len(qkv):
        return _attend(qkv, layout.groups[0], num_heads)
    laid = qkv[: layout.num_rows] if layout.rows is None else qkv.index_select(0, layout.rows)
    parts = laid.split([group.num_items * group.length for group in layout.groups])
    attended = [_attend(part, group, num_heads) for part, group in zip(parts, layout.groups, strict=True)]
    out = torch.cat(attended)
    if layout.back is not None:
        out = out.index_select(0, layout.back)
    return out if len(out) == len(qkv) else F.pad(out, (0, 0, 0, len(qkv) - len(out)))


def _attend(qkv: Tensor, group: Group, num_heads: int) -> Tensor:
    width = qkv.shape[1] // 3 // num_heads
    query, key, value = qkv.view(group.num_items, group.length, 3, num_heads, width).permute(2, 0, 3, 1, 4)
    out = F.scaled_dot_product_attention(query, key, value, attn_mask=group.mask)
    return out.transpose(1, 2).reshape(len(qkv), -1)
