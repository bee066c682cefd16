"""The plain values of the server, in addition to those of `fewshard_core.values`.

It imports no other module of this package, and most of them import it.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from fewshard_core.values import Input, TokenLabels, TokenRouting


@dataclass(frozen=True, slots=True)
class Caller:
    """The sender of a request, for fairness and priority.

    name: the name of the token's holder, or the client's address.
    is_urgent: the caller gets a larger share than others.
    is_probing: probe requests are excluded from prediction statistics and shadowing.
    """

    name: str = ""
    is_urgent: bool = False
    is_probing: bool = field(default=False, compare=False)


ANYBODY = Caller()


@dataclass(frozen=True, slots=True)
class PredictionRequest:
    """A prediction request, the same for all protocols; it is sent between processes.

    inputs: the items, in the caller's order; at least one.
    truncate: cut texts that are too long for the model; otherwise they are an error.
    timeout_s: seconds from now. It can only shorten the model's deadline; None keeps that deadline.
    caller: the sender.
    is_of_cascade: a cascade asks one of its stages. Such requests are not shadowed: a stage's shadow would
        otherwise be compared on the items alone of which the stages before it were unsure.
    split_key: requests with the same one get the same version of a model; "" leaves it to chance.
    """

    inputs: Sequence[Input]
    truncate: bool = True
    timeout_s: float | None = None
    caller: Caller = ANYBODY
    is_of_cascade: bool = False
    split_key: str = ""


@dataclass(frozen=True, slots=True)
class Timings:
    """Seconds that one request spent in each stage; the longest time of its items.

    preprocess_s: preparing the inputs.
    queue_s: waiting for a forward pass.
    infer_s: in the forward pass.
    exchange_s: the part of `infer_s` that shards took beyond their own arithmetic.
    """

    preprocess_s: float
    queue_s: float
    infer_s: float
    exchange_s: float = 0.0


@dataclass(frozen=True, slots=True)
class BatchStats:
    """The statistics of one batch, from the runner to the metrics.

    infer_s: seconds in the model.
    queue_s: seconds that each item waited.
    """

    model: str
    num_items: int
    num_tokens: int
    num_padding_tokens: int
    infer_s: float
    queue_s: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Classified:
    """A request's answer before activation.

    logits: fp32 [num_items, num_labels], in the caller's order.
    num_tokens: tokens of all items.
    is_degraded: whether at least one item ran without some experts.
    stages: for a cascade, the name of the model that answered each item.
    routing: one per item, if the caller asked for it and the model supports it; else empty.
    version: the version that answered, for a model that lists versions.
    tokens: one per item, if the model labels tokens; else empty. `logits` then holds each label's highest.
    """

    logits: NDArray[np.float32]
    num_tokens: int
    timings: Timings
    is_degraded: bool = False
    stages: tuple[str, ...] = ()
    routing: tuple[TokenRouting, ...] = ()
    version: str = ""
    tokens: tuple[TokenLabels, ...] = ()

    @property
    def labelled_logits(self) -> NDArray[np.float32]:
        """The logits of all that has a label, [items or tokens, num_labels]."""
        rows = [part for each in self.tokens for part in each.by_window()]
        return np.concatenate(rows) if rows else self.logits


@dataclass(frozen=True, slots=True)
class GroupState:
    """The state of the shards that hold one model together.

    num_shards: the configured number of shards.
    size: the number of shards at work.
    generation: increases whenever the group re-forms.
    num_reforms: how often the shards at work have changed.
    num_moves: experts that shards have loaded since the start.
    is_degraded: whether some experts are missing.
    placement: the experts, by layer and shard.
    """

    num_shards: int
    size: int
    generation: int
    num_reforms: int
    num_moves: int
    is_degraded: bool
    placement: tuple[tuple[tuple[int, ...], ...], ...]
