"""The plain values that travel through the server.

The leaf of this package: it imports nothing of ours, and everything else imports it.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

Task = Literal["text", "image"]
ProblemType = Literal["regression", "single_label_classification", "multi_label_classification"]


@dataclass(frozen=True, slots=True)
class Caller:
    """Who asks, as far as fairness goes: a token's name, or an address. `is_urgent`: may go before others.

    `is_probing`: what is asked is no traffic, so its answers count as no predictions and have no shadow.
    """

    name: str = ""
    is_urgent: bool = False
    is_probing: bool = field(default=False, compare=False)


ANYBODY = Caller()


@dataclass(frozen=True, slots=True)
class TextInput:
    """One text to classify, or one pair of texts. `wants_routing`: tell where its tokens go, if they do."""

    text: str
    text_pair: str | None = None
    wants_routing: bool = False


@dataclass(frozen=True, slots=True)
class EncodedImage:
    """One image as the bytes of a file (PNG, JPEG, WebP, GIF, BMP), with the most pixels it may have."""

    data: bytes
    max_pixels: int = 25_000_000


@dataclass(frozen=True, slots=True)
class PixelArray:
    """One image already decoded: uint8 [height, width, 3] RGB, or float32 [3, height, width] normalised."""

    pixels: NDArray[Any]


Input = TextInput | EncodedImage | PixelArray


@dataclass(frozen=True, slots=True)
class PredictionRequest:
    """What every way to ask for a prediction becomes; it travels between processes.

    inputs: the items, in the caller's order; at least one.
    truncate: cut texts that are too long for the model; otherwise they are an error.
    timeout_s: seconds from now; it can only shorten the model's own deadline. None for that deadline alone.
    caller: who asks, for fairness and priority.
    """

    inputs: Sequence[Input]
    truncate: bool = True
    timeout_s: float | None = None
    caller: Caller = ANYBODY


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
class Timings:
    """Seconds one request spent in each stage (the longest of its items'); `exchange_s` is a part of
    `infer_s`, of a model over several shards."""

    preprocess_s: float
    queue_s: float
    infer_s: float
    exchange_s: float = 0.0


@dataclass(frozen=True, slots=True)
class BatchStats:
    """One per forward pass, made by the runner, read by the metrics alone."""

    model: str
    num_items: int
    num_tokens: int
    num_padding_tokens: int
    infer_s: float
    queue_s: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Classified:
    """A request's answer before activation: fp32 logits [num_items, num_labels] in the caller's order.

    `stages` names the model that spoke for each item, where a cascade was asked.
    `is_degraded`: some experts were missing when at least one of the items ran.
    `routing`: one an item where the caller asked and the model can tell, else empty.
    """

    logits: NDArray[np.float32]
    num_tokens: int
    timings: Timings
    is_degraded: bool = False
    stages: tuple[str, ...] = ()
    routing: tuple[TokenRouting, ...] = ()


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


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """What a closer look at a sample of the items found.

    `sparsity`: by layer, mean share of feed-forward units near zero over the last items; `class_experts`:
    int64 [num_labels, MoE layers, num_experts], tokens by predicted label and expert since the start.
    """

    num_items: int
    sparsity: tuple[float, ...]
    class_experts: NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class GroupState:
    """The shards that hold one model together.

    `size` of `num_shards` are at work; `placement`: experts by layer and shard; `num_reforms`: how often the
    shards at work have changed, `num_moves`: experts that were loaded by some shard since the start.
    """

    num_shards: int
    size: int
    generation: int
    num_reforms: int
    num_moves: int
    is_degraded: bool
    placement: tuple[tuple[tuple[int, ...], ...], ...]
