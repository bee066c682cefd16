"""Packs items and outputs for the way between a replica and the process of its models.

Pickling each item by itself costs more than tokenising a short text. `process` and `child_process` call it.
"""

from array import array
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fewshard_core.values import ExpertCounts, Item, ModelOutput, TokenIds

Packed = tuple[Any, ...]
"""A tuple of plain values and buffers, which pickle copies as they are."""


def pack_items(items: Sequence[Item]) -> Packed:
    """Pack a batch; `unpack_items` returns equal items in the same order."""
    kinds = {type(item.features) for item in items}
    num_tokens = [item.num_tokens for item in items]
    routing = [item.routing for item in items] if any(item.routing for item in items) else None
    if kinds == {TokenIds}:
        return ("texts", _pack_texts([item.features for item in items]), num_tokens, routing)
    if kinds == {dict} and len({_form(item.features) for item in items}) == 1:
        names = items[0].features.keys()
        stacks = {name: np.stack([item.features[name] for item in items]) for name in names}
        return ("arrays", stacks, num_tokens, routing)
    return ("objects", [item.features for item in items], num_tokens, routing)


def unpack_items(packed: Packed) -> list[Item]:
    """Return the items of `pack_items`. Arrays are views of one array."""
    kind, content, num_tokens, routing = packed
    features = _UNPACK[kind](content)
    return list(map(Item, features, num_tokens, routing or [None] * len(num_tokens)))


def _pack_texts(texts: Sequence[TokenIds]) -> Packed:
    ids, types = array("i"), array("i")
    for text in texts:
        ids.extend(text.ids)
    has_types = [text.types is not None for text in texts]
    for text in texts:
        types.extend(text.types or ())
    return [len(text.ids) for text in texts], has_types, ids.tobytes(), types.tobytes()


def _unpack_texts(packed: Packed) -> list[TokenIds]:
    lengths, has_types, id_bytes, type_bytes = packed
    ids, types = memoryview(id_bytes).cast("i"), memoryview(type_bytes).cast("i")
    texts, start, type_start = [], 0, 0
    for length, has in zip(lengths, has_types, strict=True):
        own = types[type_start : type_start + length].tolist() if has else None
        texts.append(TokenIds(ids[start : start + length].tolist(), own))
        start += length
        type_start += length * has
    return texts


def _unpack_arrays(stacks: dict[str, NDArray[Any]]) -> list[dict[str, NDArray[Any]]]:
    num_items = len(next(iter(stacks.values())))
    return [{name: stack[row] for name, stack in stacks.items()} for row in range(num_items)]


_UNPACK: dict[str, Any] = {"texts": _unpack_texts, "arrays": _unpack_arrays, "objects": list}


def _form(features: dict[str, Any]) -> tuple[Any, ...] | int:
    """The names, shapes and types of arrays, by which features can be stacked; else a unique number."""
    if not features or not all(isinstance(each, np.ndarray) for each in features.values()):
        return id(features)
    return tuple((name, each.shape, each.dtype.str) for name, each in features.items())


def pack_output(output: ModelOutput) -> Packed:
    return (
        output.logits,
        output.num_padding_tokens,
        output.is_degraded,
        output.exchange_s,
        output.token_logits,
    )


def unpack_output(packed: Packed) -> ModelOutput:
    return ModelOutput(*packed)


def pack_counts(counts: ExpertCounts | None) -> Packed | None:
    if counts is None:
        return None
    sums = (counts.tokens, counts.probability, counts.entropy, counts.rows)
    return (*sums, counts.top_k, counts.shard_tokens)


def unpack_counts(packed: Packed | None) -> ExpertCounts | None:
    return None if packed is None else ExpertCounts(*packed)
