"""Runs one batch so that a bad item fails alone, and learns how long a forward pass may take.

The runner calls `execute` for every batch and keeps one `PassTimeout` per model.
"""

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from fewshard_core.values import Item, ModelOutput
from fewshard_models.classifier.base import Classifier
from fewshard_models.errors import NotFiniteError
from fewshard_serve.engine.queue import Outcome
from fewshard_serve.errors import DeadlineExceeded, InternalError, ModelRestarted, ServeError

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class BatchResult:
    """What `execute` found.

    outcomes: one per item, in item order.
    num_padding_tokens: the sum over all successful passes.
    is_degraded: whether any successful pass missed some experts.
    exchange_s: seconds that shards took beyond their own arithmetic, summed over all successful passes.
    was_out_of_memory: whether any failed pass ran out of memory.
    has_run: false if all items were late before the first pass.
    """

    outcomes: list[Outcome]
    num_padding_tokens: int = 0
    is_degraded: bool = False
    exchange_s: float = 0.0
    was_out_of_memory: bool = False
    has_run: bool = True


@dataclass(frozen=True, slots=True)
class Pacing:
    """When passes begin.

    on_pass: called before every forward pass, so that a watchdog sees progress.
    give_up_at: no pass begins after this time, on `clock`: then nobody waits for any of the items.
    """

    on_pass: Callable[[], None] = lambda: None
    give_up_at: float = float("inf")
    clock: Callable[[], float] = time.monotonic


def execute(model: Classifier, items: Sequence[Item], pacing: Pacing = Pacing()) -> BatchResult:
    """Run the items together; if that fails, halve the batch until only the bad items fail.

    Halving also rescues a batch that was too large for the device's memory. If the model's process ends
    during a pass, the pass is repeated once.
    """
    ran = _run(model, items, pacing)
    if isinstance(ran, ModelRestarted):
        ran = _run(model, items, pacing)
    if isinstance(ran, ModelOutput):
        return _finite(model, items, ran, pacing)
    if isinstance(ran, DeadlineExceeded):
        return BatchResult([ran] * len(items), has_run=False)
    executed = _halved(model, items, pacing) if len(items) > 1 else BatchResult([ran])
    return replace(executed, was_out_of_memory=True) if isinstance(ran, OutOfMemory) else executed


NO_MEMORY = (
    "out of memory",
    "out_of_memory",  # ONEDNN_RUNTIME_OUT_OF_MEMORY and CL_OUT_OF_HOST_MEMORY
    "allocate memory",
    "not enough memory",
    "bad_alloc",
    "alloc_failed",  # CUBLAS_STATUS_ALLOC_FAILED, CUDNN_STATUS_ALLOC_FAILED
    "could not create a primitive",  # oneDNN names no reason: it reserves its buffers there
    "could not create a memory",
    "could not execute a primitive",
)
"""How torch and the libraries below it say that memory has run out. oneDNN says the same where an operation
is not offered; then smaller batches do not help, and single items fail as they would have."""


def is_out_of_memory(error: Exception) -> bool:
    """Whether the device or the machine ran out of memory; torch reports this in several ways."""
    words = str(error).lower()
    by_words = isinstance(error, RuntimeError) and any(known in words for known in NO_MEMORY)
    return isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError" or by_words


class OutOfMemory(InternalError):
    """A single item does not fit the memory."""


LATE = "the deadline passed while the item waited for its batch; send fewer items or allow more time"


def _run(model: Classifier, items: Sequence[Item], pacing: Pacing) -> ModelOutput | ServeError:
    if pacing.clock() >= pacing.give_up_at:
        return DeadlineExceeded(LATE)
    pacing.on_pass()
    try:
        return _checked(model.run_by(pacing.give_up_at, items), len(items)).fill(items)
    except ServeError as error:
        return error
    except NotFiniteError as error:
        logger.error("%s: %s", model.info.name, error)
        return InternalError(str(error))
    except Exception as error:  # a model may raise any exception; the thread must survive it
        if len(items) == 1:
            logger.exception("%s: the model failed on one item", model.info.name)
        else:
            logger.warning("%s: a batch of %d items failed: %r", model.info.name, len(items), error)
        if is_out_of_memory(error):
            return OutOfMemory("there is not enough memory for this item, even alone; send a smaller one")
        return InternalError(f"the model failed on this item ({type(error).__name__})")


def _halved(model: Classifier, items: Sequence[Item], pacing: Pacing) -> BatchResult:
    middle = len(items) // 2
    first, second = (execute(model, half, pacing) for half in (items[:middle], items[middle:]))
    return BatchResult(
        first.outcomes + second.outcomes,
        first.num_padding_tokens + second.num_padding_tokens,
        first.is_degraded or second.is_degraded,
        first.exchange_s + second.exchange_s,
        first.was_out_of_memory or second.was_out_of_memory,
    )


def _checked(output: ModelOutput, num_items: int) -> ModelOutput:
    shape = output.logits.shape
    if len(shape) != 2 or shape[0] != num_items:
        raise ValueError(f"the model returned logits of shape {shape} for {num_items} items. This is a bug.")
    return output


def _finite(model: Classifier, items: Sequence[Item], output: ModelOutput, pacing: Pacing) -> BatchResult:
    """Rerun each item whose logits are not finite alone, since another item may have caused it."""
    outcomes: list[Outcome] = list(output.logits)
    for index in np.flatnonzero(~np.isfinite(output.logits).all(axis=1)).tolist():
        outcomes[index] = _alone(model, items[index], len(items), pacing)
    return BatchResult(outcomes, output.num_padding_tokens, output.is_degraded, output.exchange_s)


def _alone(model: Classifier, item: Item, num_items: int, pacing: Pacing) -> Outcome:
    if num_items > 1:
        return execute(model, [item], pacing).outcomes[0]
    logger.error("%s: the logits of one item are not finite", model.info.name)
    return InternalError("the model's logits for this item are not finite")


MIN_ALLOWED_S = 5.0
MAX_ALLOWED_S = 60.0
FACTOR = 10.0


class PassTimeout:
    """The time a forward pass may take: `FACTOR` times the slowest pass so far, scaled by its tokens.

    min_s, max_s: bounds of the result, in seconds. `max_s` applies until the first pass has ended.
    """

    def __init__(self, min_s: float = MIN_ALLOWED_S, max_s: float = MAX_ALLOWED_S) -> None:
        self.min_s, self._max_s = min_s, max_s
        self._slowest_s = 0.0
        self._most_tokens = 0

    @property
    def is_measured(self) -> bool:
        """Whether any pass has ended."""
        return self._most_tokens > 0

    def observe(self, num_tokens: int, seconds: float) -> None:
        """Record a pass of `num_tokens` tokens that took `seconds`."""
        self._slowest_s = max(self._slowest_s, seconds)
        self._most_tokens = max(self._most_tokens, num_tokens, 1)

    def allowed_s(self, num_tokens: int) -> float:
        """The seconds that a pass of `num_tokens` tokens may take."""
        if not self.is_measured:
            return self._max_s
        expected_s = self._slowest_s * max(1.0, num_tokens / self._most_tokens)
        return min(max(FACTOR * expected_s, self.min_s), self._max_s)
