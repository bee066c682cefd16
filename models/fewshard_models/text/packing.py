"""Packed batches: the tokens of all items are concatenated, so that no product processes padding."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True, slots=True)
class PackedTokens:
    """Concatenated tokens of several items.

    input_ids: int64 [T].
    lengths: number of tokens of each item, in order; they sum to T.
    token_type_ids: int64 [T], for models with segments.

    Adjacent items of equal length share one attention call, so callers should sort by length.
    """

    input_ids: Tensor
    lengths: tuple[int, ...]
    token_type_ids: Tensor | None = None

    @property
    def num_tokens(self) -> int:
        return self.input_ids.shape[0]

    @property
    def lengths_tensor(self) -> Tensor:
        return torch.tensor(self.lengths, dtype=torch.int64, device=self.input_ids.device)

    def owners(self) -> Tensor:
        """int64 [T]: the index of each token's item."""
        lengths = self.lengths_tensor
        return torch.arange(len(self.lengths), device=lengths.device).repeat_interleave(lengths)

    def position_ids(self) -> Tensor:
        """int64 [T]: 0, 1, 2 … within each item."""
        lengths = self.lengths_tensor
        starts = lengths.cumsum(0) - lengths
        return torch.arange(self.input_ids.shape[0], device=starts.device) - starts.repeat_interleave(lengths)


def pack(
    items: Sequence[Sequence[int]], token_types: Sequence[Sequence[int]] | None, device: torch.device
) -> PackedTokens:
    """Concatenate the items' token ids in the given order."""
    return PackedTokens(
        input_ids=_flat(items, device),
        lengths=tuple(len(item) for item in items),
        token_type_ids=None if token_types is None else _flat(token_types, device),
    )


def pack_padded(
    input_ids: Tensor, attention_mask: Tensor | None, token_type_ids: Tensor | None
) -> PackedTokens:
    """Remove the padding of a right-padded batch [N, L]; `attention_mask` is 1 for real tokens."""
    if attention_mask is None:
        attention_mask = torch.ones_like(input_ids)
    real = attention_mask.bool()
    return PackedTokens(
        input_ids=input_ids[real],
        lengths=tuple(real.sum(dim=1).tolist()),
        token_type_ids=None if token_type_ids is None else token_type_ids[real],
    )


def with_rows(hidden: Tensor, num_rows: int) -> Tensor:
    """Pad [T, H] to [num_rows, H] with rows of zeros at the end."""
    return hidden if num_rows == len(hidden) else F.pad(hidden, (0, 0, 0, num_rows - len(hidden)))


def mean_of_items(hidden: Tensor, packed: PackedTokens) -> Tensor:
    """The mean of each item's tokens: [T, H] to fp32 [num_items, H]."""
    sums = torch.zeros(len(packed.lengths), hidden.shape[1], device=hidden.device)
    return sums.index_add(0, packed.owners(), hidden.float()) / packed.lengths_tensor[:, None]


def _flat(items: Sequence[Sequence[int]], device: torch.device) -> Tensor:
    return torch.tensor([token for item in items for token in item], dtype=torch.int64, device=device)
