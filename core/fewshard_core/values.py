"""The plain values that classifiers take and return; the packages of models and server share them."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

Task = str
"""The kind of input that a model classifies: "text", "image" or another. The server's tasks define them."""
ProblemType = Literal["regression", "single_label_classification", "multi_label_classification"]


class Input:
    """One input to classify. Each task has its own subclasses, which its models accept."""

    __slots__ = ()


@dataclass(frozen=True, slots=True)
class TextInput(Input):
    """One text to classify, or one pair of texts.

    wants_routing: return the experts of each token, if the model is an MoE model.
    """

    text: str
    text_pair: str | None = None
    wants_routing: bool = False


@dataclass(frozen=True, slots=True)
class EncodedImage(Input):
    """One image as the bytes of a file (PNG, JPEG, WebP, GIF, BMP).

    max_pixels: an image with more pixels is refused.
    """

    data: bytes
    max_pixels: int = 25_000_000


@dataclass(frozen=True, slots=True)
class PixelArray(Input):
    """One decoded image: uint8 [height, width, 3] RGB, or float32 [3, height, width] normalised."""

    pixels: NDArray[Any]


@dataclass(frozen=True, slots=True)
class TokenIds:
    """The features of a text `Item`.

    ids: token ids.
    types: the segment of each token; None for models without segments.
    """

    ids: list[int]
    types: list[int] | None


@dataclass(slots=True)
class TokenRouting:
    """The experts that received the tokens of one text.

    tokens: as the tokenizer spells them.
    experts: [num_layers][num_tokens][top_k], only layers with experts. Empty until the model has run.
    """

    tokens: list[str]
    experts: list[list[list[int]]] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Window:
    """A part of a text, as long as the model takes; the only one of most texts. Special tokens are left out.

    rows: int64 [num_tokens], the place of each token among all of the window, special ones too.
    starts, ends: int64 [num_tokens], where each token begins and ends in the text, in characters.
    continues: bool [num_tokens], whether a token continues the word of the one before.
    """

    rows: NDArray[np.int64]
    starts: NDArray[np.int64]
    ends: NDArray[np.int64]
    continues: NDArray[np.bool_]


@dataclass(slots=True)
class TokenLabels:
    """The tokens of one text, for a model that labels tokens.

    windows: its parts, which overlap.
    logits: fp32 [tokens of all windows, special ones too, num_labels]. None until the model has run.
    sizes: the number of tokens of each window, special ones too.
    """

    text: str
    windows: tuple[Window, ...]
    sizes: tuple[int, ...]
    logits: NDArray[np.float32] | None = None

    def by_window(self) -> list[NDArray[np.float32]]:
        """The logits of each window's tokens, without special ones: fp32 [num_tokens, num_labels]."""
        assert self.logits is not None, "the model has not run. This is a bug."
        parts = np.split(self.logits, np.cumsum(self.sizes)[:-1])
        return [part[window.rows] for part, window in zip(parts, self.windows, strict=True)]


@dataclass(frozen=True, slots=True)
class Item:
    """One prepared input.

    features: what the model's `prepare` returned for it.
    num_tokens: its tokens in a batch; 0 for images, whose batches only `max_items` limits.
    routing: to be filled in by the model; None unless the caller asked and the model supports it.
    tokens: of a model that labels tokens, to be filled in by `ModelOutput.fill`; else None.
    """

    features: Any
    num_tokens: int
    routing: TokenRouting | None = None
    tokens: TokenLabels | None = None


@dataclass(frozen=True, slots=True)
class ModelOutput:
    """What one forward pass returns.

    logits: fp32 [num_items, num_labels], in item order.
    num_padding_tokens: padding in the batch.
    is_degraded: whether some experts were missing.
    exchange_s: seconds that shards took beyond their own arithmetic.
    token_logits: of a model that labels tokens, fp32 [num_tokens, num_labels] of each item. `logits` then
        holds each label's highest.
    """

    logits: NDArray[np.float32]
    num_padding_tokens: int = 0
    is_degraded: bool = False
    exchange_s: float = 0.0
    token_logits: Sequence[NDArray[np.float32]] = ()

    def fill(self, items: Sequence[Item]) -> "ModelOutput":
        """Give the items of this pass the logits of their tokens. Returns this output."""
        for item, logits in zip(items, self.token_logits, strict=bool(self.token_logits)):
            if item.tokens is not None:
                item.tokens.logits = logits
        return self


@dataclass(frozen=True, slots=True)
class Execution:
    """How a model is run on this machine, beside its device and number format.

    dtype_reason: why it has its number format, in words.
    num_threads: the threads of a forward pass; 0 leaves them as they are.
    num_streams: how many passes run at the same time, each with its own `num_threads`.
    threads_reason: why so many of both, in words.
    max_batch_tokens: the most tokens of one batch that pay; 0 for the device's usual number.
    engine: what computes it: "torch" or "openvino".
    engine_reason: why, in words; "" where there was no choice.
    """

    dtype_reason: str = ""
    num_threads: int = 0
    num_streams: int = 1
    threads_reason: str = ""
    max_batch_tokens: int = 0
    engine: str = "torch"
    engine_reason: str = ""


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """The description of a served model, from which V2 metadata, `/config` and `model_info` are built.

    thresholds: of independent labels, for each the score from which an item has it; empty if none is set.
    """

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
    execution: Execution = Execution()
    thresholds: tuple[float, ...] = ()

    @property
    def has_independent_labels(self) -> bool:
        """Whether an item may have several labels, or none: each score stands for itself, from 0 to 1."""
        is_alone = len(self.labels) == 1 and self.problem_type != "regression"
        return is_alone or self.problem_type == "multi_label_classification"

    @property
    def is_score(self) -> bool:
        """Whether an answer is one number that is no probability, as of a regression or a reward model."""
        return len(self.labels) == 1 and self.problem_type == "regression"


def label_order(labels: Sequence[str], wanted: Sequence[str]) -> list[int] | None:
    """Return the place in `labels` of each of `wanted`; None if the two do not match.

    Two outputs of a model may have one name ("crane" of ImageNet). Such labels match in the same order alone.
    """
    if list(labels) == list(wanted):
        return list(range(len(labels)))
    if sorted(labels) != sorted(wanted) or len(set(labels)) < len(labels):
        return None
    return [labels.index(label) for label in wanted]


@dataclass(frozen=True, slots=True)
class ExpertCounts:
    """Cumulative routing counts of one model since it was loaded, copied from the device.

    tokens: int64 [num_layers, num_experts], rows that each expert received.
    probability: float64 [num_layers, num_experts], summed router probability of each expert.
    entropy: float64 [num_layers], summed entropy of the router's distribution, in nats.
    rows: int64 [num_layers], routed tokens (before top-k).
    top_k: experts per token.
    shard_tokens: int64 [num_layers, num_shards], rows that each shard's experts multiplied; None for a model
        with a single shard.
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
        """The sum of two counts of the same model, whose `top_k` and shapes are equal."""
        return self._combined(other, np.add)

    def __sub__(self, earlier: "ExpertCounts") -> "ExpertCounts":
        """The counts since `earlier`, an earlier reading of the same model."""
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
    """Statistics of the sampled items.

    num_items: the number of sampled items since the start.
    sparsity: by layer, the mean share of feed-forward units near zero, over the last sampled items.
    class_experts: int64 [num_labels, num_moe_layers, num_experts], tokens by predicted label and expert since
        the start.
    """

    num_items: int
    sparsity: tuple[float, ...]
    class_experts: NDArray[np.int64]
