"""How a request wishes its answer, the same for all protocols."""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class AnswerOptions:
    """None where a request says nothing.

    top_k: only the best so many labels.
    raw_scores: logits in place of scores.
    aggregation, ignore_labels: of models that label tokens; `entities_of` says what they mean.
    """

    top_k: int | None = None
    raw_scores: bool | None = None
    aggregation: str | None = None
    ignore_labels: Sequence[str] | None = None
