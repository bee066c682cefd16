"""The limits one model is served under; the configuration fills them, the engine reads them.

`Scaling` is for whoever decides how many engines there are.
"""

from dataclasses import dataclass, replace
from typing import Self

from fewshard_models.classifier.batching import MAX_BATCH_ITEMS, max_batch_tokens


@dataclass(frozen=True, slots=True)
class EngineSettings:
    """`max_tokens` and `max_items` bound one batch, `admission_*` all that is in flight for the model.

    `max_tokens` is 0 until `on` has chosen what suits the device.

    `queue_ms` is how long an item should wait at the most while more is asked for than can be done.
    """

    max_tokens: int = 0
    max_items: int = MAX_BATCH_ITEMS
    max_wait_ms: float = 0
    admission_min_items: int = 32
    admission_max_items: int = 2048
    admission_max_tokens: int = 262144
    queue_ms: float = 2500
    deadline_ms: float = 10000

    def on(self, device: str) -> Self:
        """These, as they are for a model on that device."""
        return replace(self, max_tokens=self.max_tokens or max_batch_tokens(device))

    @property
    def max_wait_s(self) -> float:
        return self.max_wait_ms / 1000

    @property
    def deadline_s(self) -> float:
        return self.deadline_ms / 1000

    @property
    def target_wait_s(self) -> float:
        """Well below the deadline, however that is set."""
        return min(self.queue_ms, self.deadline_ms / 2) / 1000


@dataclass(frozen=True, slots=True)
class Scaling:
    """When a host that may have several replicas gets one more or less."""

    target_items: float = 64
    scale_up_s: float = 5.0
    scale_down_s: float = 60.0
