"""The limits one model is served under; the configuration fills them, the engine reads them."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class EngineSettings:
    """`max_tokens` and `max_items` bound one batch, `admission_max_*` all that is in flight for the model."""

    max_tokens: int = 16384
    max_items: int = 512
    max_wait_ms: float = 0
    admission_max_items: int = 2048
    admission_max_tokens: int = 262144
    deadline_ms: float = 10000

    @property
    def max_wait_s(self) -> float:
        return self.max_wait_ms / 1000

    @property
    def deadline_s(self) -> float:
        return self.deadline_ms / 1000
