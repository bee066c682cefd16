"""The plain values that a classifier takes and gives; the models' and the server's packages share them."""

from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

Task = str
"""What kind of input a model classifies: "text", "image", or another; the server's tasks describe them."""
ProblemType = Literal["regression", "single_label_classification", "multi_label_classification"]


class Input:
    """One thing to classify. Each task has classes of its own, which its models know."""

    __slots__ = ()


@dataclass(frozen=True, slots=True)
class TextInput(Input):
    """One text to classify, or one pair of texts. `wants_routing`: tell where its tokens go, if they do."""

    text: str
    text_pair: str | None = None
    wants_routing: bool = False


@dataclass(frozen=True, slots=True)
class EncodedImage(Input):
    """One image as the bytes of a file (PNG, JPEG, WebP, GIF, BMP), with the most pixels it may have."""

    data: bytes
    max_pixels: int = 25_000_000


@dataclass(frozen=True, slots=True)
class PixelArray(Input):
    """One image already decoded: uint8 [height, width, 3] RGB, or float32 [3, height, width] normalised."""

    pixels: NDArray[Any]


@dataclass(frozen=True, slots=True)
class TokenIds:
    """The features of a text `Item`: its tokens, and their segments, None for models without segments."""

    ids: list[int]
    types: list[int] | None


@dataclass(slots=True)
class TokenRouting:
    """The experts that one text's tokens went to.

    `tokens` are spelled as the tokenizer spells them. `experts` [num_layers][num_tokens][top_k], the layers
    with experts alone; empty until the model that runs the text has filled it in.
    """

    tokens: list[str]
    experts: list[list[list[int]]] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Item:
    """One prepared input: what the model's `prepare` made of it, and what it costs in a batch.

    `num_tokens` is 0 for images, whose batches are limited by `max_items` alone. `routing` is there where the
    caller asked for it and the model can tell.
    """

    features: Any
    num_tokens: int
    routing: TokenRouting | None = None


@dataclass(frozen=True, slots=True)
class ModelOutput:
    """What one forward pass returns: fp32 logits [num_items, num_labels], in the order of the items.

    `is_degraded`: some experts were missing. `exchange_s`: what shards took beyond their own arithmetic.
    """

    logits: NDArray[np.float32]
    num_padding_tokens: int = 0
    is_degraded: bool = False
    exchange_s: float = 0.0


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """What a served model is; the source of V2 metadata, `/config` and `model_info`."""

    name: str
    task: Task
    kind: str
    labels: tuple[str, ...]
    problem_type: ProblemType
    architecture: str
    dtype: str
    device: str
    max_tokens: int
    version: str = "1"
    card: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class ExpertCounts:
    """Cumulative routing counts of one model since it was loaded, copied off the device on request.

    `tokens`: int64 [num_layers, num_experts], rows each expert received;
    `probability`: float64 [num_layers, num_experts], summed router probability of every expert;
    `entropy`: float64 [num_layers], summed entropy of the router's distribution, in nats;
    `rows`: int64 [num_layers], routed tokens (before top-k);
    `shard_tokens`: int64 [num_layers, num_shards], rows the experts of each shard multiplied; None where
    there is one shard, which multiplies them all.
    """

    tokens: NDArray[np.int64]
    probability: NDArray[np.float64]
    entropy: NDArray[np.float64]
    rows: NDArray[np.int64]
    top_k: int
    shard_tokens: NDArray[np.int64] | None = None

    @property
    def by_shard(self) -> NDArray[np.int64]:
        """int64 [num_layers, num_shards]"""
        return self.tokens.sum(axis=1, keepdims=True) if self.shard_tokens is None else self.shard_tokens

    def __add__(self, other: "ExpertCounts") -> "ExpertCounts":
        """The counts of both together; of the same model, so `top_k` and the shapes are equal."""
        return self._combined(other, np.add)

    def __sub__(self, earlier: "ExpertCounts") -> "ExpertCounts":
        """What was counted after `earlier`, a reading of the same model."""
        return self._combined(earlier, np.subtract)

    def _combined(self, other: "ExpertCounts", combine: np.ufunc) -> "ExpertCounts":
        has_shards = self.shard_tokens is not None or other.shard_tokens is not None
        return ExpertCounts(
            tokens=combine(self.tokens, other.tokens),
            probability=combine(self.probability, other.probability),
            entropy=combine(self.entropy, other.entropy),
            rows=combine(self.rows, other.rows),
            top_k=self.top_k,
            shard_tokens=combine(self.by_shard, other.by_shard) if has_shards else None,
        )


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """What a closer look at a sample of the items found.

    `sparsity`: by layer, mean share of feed-forward units near zero over the last items; `class_experts`:
    int64 [num_labels, MoE layers, num_experts], tokens by predicted label and expert since the start.
    """

    num_items: int
    sparsity: tuple[float, ...]
    class_experts: NDArray[np.int64]
