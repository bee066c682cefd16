"""One model with its queue, from which the runner cuts its batches."""

import logging
from dataclasses import dataclass, field

from fewshard_models.classifier.base import Classifier
from fewshard_serve.capabilities import Grouped
from fewshard_serve.engine.batch import MAX_ALLOWED_S, MIN_ALLOWED_S, PassTimeout
from fewshard_serve.engine.queue import Cut, Queue
from fewshard_serve.engine.settings import BatchingSettings

logger = logging.getLogger(__name__)

UNSPLIT_ITEMS = 16
"""Batches up to this size are not split: on a CPU, smaller batches cost more per item."""


def _pace_of(model: Classifier) -> PassTimeout:
    # A group that loses a shard re-forms within the pass, which takes as long as loading the model.
    is_grouped = isinstance(model, Grouped) and model.group() is not None
    return PassTimeout(min_s=MAX_ALLOWED_S if is_grouped else MIN_ALLOWED_S)


@dataclass(slots=True)
class ScheduledModel:
    """One model with its queue.

    max_tokens, max_items: the largest batch now; halved each time the device runs out of memory.
    pace: learns how long a forward pass of this model may take.
    num_streams: how many of its batches run at the same time.
    """

    model: Classifier
    settings: BatchingSettings
    max_tokens: int = field(init=False)
    max_items: int = field(init=False)
    queue: Queue = field(default_factory=Queue)
    pace: PassTimeout = field(init=False)
    num_streams: int = field(init=False)
    _last_size: int = field(default=0, init=False)

    def __post_init__(self) -> None:
        self.max_tokens = self.settings.max_tokens_of(self.model.info)
        self.max_items = self.settings.max_items
        self.pace = _pace_of(self.model)
        self.num_streams = self.model.info.execution.num_streams

    @property
    def is_full(self) -> bool:
        """True if waiting longer could not make the next batch larger."""
        enough_tokens = self.queue.num_tokens >= self.max_tokens
        return enough_tokens or len(self.queue) >= self.max_items

    @property
    def ready_at(self) -> float:
        """The time from which a batch may be cut; the queue must not be empty."""
        waits = 0.0 if self.is_full else self.settings.max_wait_s
        return self.queue.head_enqueued_at + waits

    @property
    def can_prefetch(self) -> bool:
        """True if enough items wait to cut a batch while another one runs."""
        return self.is_full or len(self.queue) >= max(UNSPLIT_ITEMS, self._last_size)

    def cut(self, now: float) -> Cut:
        """Take the next batch: at most the mean of the queue's length and the last batch's size.

        Without this limit, closed-loop clients synchronise into a single batch, and computing and replying
        never overlap. Halving the batch keeps two groups alternating.
        """
        share = max(UNSPLIT_ITEMS, (len(self.queue) + self._last_size + 1) // 2)
        cut = self.queue.cut(self.max_tokens, min(self.max_items, share), now)
        self._last_size = len(cut.batch)
        return cut

    def lower_budget(self, num_tokens: int, num_items: int) -> None:
        """A batch of this size ran out of memory: limit later batches to half of it."""
        self.max_tokens = max(1, min(self.max_tokens, num_tokens // 2))
        self.max_items = max(1, min(self.max_items, num_items // 2))
        logger.warning(
            "%s: out of memory; batches now hold %d tokens and %d items at the most",
            self.model.info.name,
            self.max_tokens,
            self.max_items,
        )
