"""Batching and admission settings of one model; read by the engine."""

from dataclasses import dataclass
from typing import Annotated

from annotated_types import Ge, Le

from fewshard_core.values import ModelInfo
from fewshard_models.classifier.batching import MAX_BATCH_ITEMS, max_batch_tokens
from fewshard_serve.settings import NO_OTHER_KEYS, STRICT, Positive, PositiveInt, WithExponent


@dataclass(frozen=True, slots=True)
class BatchingSettings:
    """What one forward pass may hold, and how long a batch that is not full may wait for more.

    Without `max_tokens` a batch has as many as suit the model and its device.
    """

    __pydantic_config__ = NO_OTHER_KEYS

    max_tokens: PositiveInt | None = None
    max_items: PositiveInt = MAX_BATCH_ITEMS
    max_wait_ms: Annotated[float, STRICT, Ge(0), Le(60_000), WithExponent()] = 0.0

    def max_tokens_of(self, info: ModelInfo) -> int:
        """The largest number of tokens in one batch of this model."""
        return self.max_tokens or max_batch_tokens(info)

    @property
    def max_wait_s(self) -> float:
        return self.max_wait_ms / 1000


@dataclass(frozen=True, slots=True)
class AdmissionSettings:
    """What each replica accepts before it answers 429, and how long a request may take."""

    __pydantic_config__ = NO_OTHER_KEYS

    min_items: PositiveInt = 32
    """The adaptive limit of items in flight never falls below this."""
    max_items: PositiveInt = 2048
    max_tokens: PositiveInt = 262_144
    max_heavy_cost: PositiveInt = 16_777_216
    """What preparing the heavy inputs in flight may cost: a character of text counts 1, so do 64 pixels."""
    queue_ms: Positive = 2500.0
    """The longest time that an item should wait under overload, in milliseconds."""
    deadline_ms: Positive = 10_000.0

    @property
    def deadline_s(self) -> float:
        return self.deadline_ms / 1000

    @property
    def target_wait_s(self) -> float:
        """The wait that admission aims at, in seconds: at most half the deadline."""
        return min(self.queue_ms, self.deadline_ms / 2) / 1000


@dataclass(frozen=True, slots=True)
class EngineSettings:
    """The batching and admission settings of one model."""

    batching: BatchingSettings = BatchingSettings()
    admission: AdmissionSettings = AdmissionSettings()
