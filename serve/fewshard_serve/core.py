"""The plain values that travel through the server, beside those of `fewshard_core.values`.

The leaf of this package: it imports nothing of the server's, and everything else imports it.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from fewshard_core.values import Input, TokenRouting


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
