"""How large a batch may be, for the server and for offline use alike."""

from collections.abc import Iterator, Sequence

from fewshard_core.values import Item

CPU_BATCH_TOKENS = 4096
"""Larger batches leave the caches: 512 sentences take up to 1.3 times as long each as 128 (docs/log.md)."""
GPU_BATCH_TOKENS = 16384
MAX_BATCH_ITEMS = 512


def max_batch_tokens(device: str) -> int:
    """The most tokens of one batch on a device, named as `ModelInfo.device` names it."""
    return CPU_BATCH_TOKENS if device == "cpu" else GPU_BATCH_TOKENS


def batches(items: Sequence[Item], max_tokens: int, max_items: int) -> Iterator[list[int]]:
    """Row numbers of all items in batches within both bounds, the shortest items first.

    Texts of like length together cost fewer attention calls when packed and less padding when not. An item
    that alone passes `max_tokens` goes alone.
    """
    rows: list[int] = []
    num_tokens = 0
    for row in sorted(range(len(items)), key=lambda row: items[row].num_tokens):
        cost = items[row].num_tokens
        if rows and (len(rows) == max_items or num_tokens + cost > max_tokens):
            yield rows
            rows, num_tokens = [], 0
        rows.append(row)
        num_tokens += cost
    if rows:
        yield rows
