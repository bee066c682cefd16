"""Limits of batch sizes, and division of items into batches; used by the server and offline."""

from collections.abc import Iterator, Sequence

from fewshard_core.values import Item, ModelInfo

CPU_BATCH_TOKENS = 4096
"""Where it is not measured. Larger batches may leave the caches: 512 sentences took up to 1.3 times as long
each as 128 (docs/log.md)."""
GPU_BATCH_TOKENS = 16384
MAX_BATCH_ITEMS = 512


def max_batch_tokens(info: ModelInfo) -> int:
    """Return the most tokens of one batch of a model: as measured, or what suits its device."""
    usual = CPU_BATCH_TOKENS if info.device == "cpu" else GPU_BATCH_TOKENS
    return info.execution.max_batch_tokens or usual


def batches(items: Sequence[Item], max_tokens: int, max_items: int) -> Iterator[list[int]]:
    """Yield batches of row numbers within both limits, the shortest items first.

    Texts of similar length need fewer attention calls when packed, and less padding otherwise. An item that
    exceeds `max_tokens` gets its own batch.
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
