"""Counts a model's predicted labels and confidences, and measures their drift from the model's card.

The recorder keeps one `PredictionStats` per model.
"""

import threading
from collections import Counter
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fewshard_core.activation import activate, assigned
from fewshard_core.values import ModelInfo
from fewshard_serve.metrics.definitions import CONFIDENCES

MAX_WAITING = 512
"""Answered requests that are counted together: counting each alone would cost more than all other metrics."""
WINDOW_ITEMS = 1000
MIN_DRIFT_ITEMS = 200
"""With fewer items, the distance from the card is mostly noise."""
SERVED = "served"
"""The card's `extra` key: `{"labels": {label: share}, "confidence": {bound: share at or below}}`."""

_BOUNDS = np.array(CONFIDENCES, np.float32)


class PredictionStats:
    """The predictions of one model. Any thread may call it."""

    def __init__(self, info: ModelInfo) -> None:
        self.info = info
        self._lock = threading.Lock()
        self._waiting: list[NDArray[np.float32]] = []
        self._total = _Sums(len(info.labels))
        self._earlier, self._recent = _Sums(len(info.labels)), _Sums(len(info.labels))

    def add(self, logits: NDArray[np.float32]) -> None:
        """Add one request's logits [num_items, num_labels].

        With multiple labels per item, every label counts whose score reaches its threshold.
        """
        if self.info.problem_type == "regression":
            return
        with self._lock:
            self._waiting.append(logits)
            if len(self._waiting) >= MAX_WAITING:
                self._count()

    def read(self) -> "tuple[_Sums, _Sums]":
        """Return copies of the sums over all items, and over the last 1,000 to 2,000."""
        with self._lock:
            self._count()
            return self._total.plus(_Sums(len(self.info.labels))), self._earlier.plus(self._recent)

    def _count(self) -> None:
        if not self._waiting:
            return
        scores = activate(np.concatenate(self._waiting), self.info.problem_type)
        self._waiting.clear()
        added = _sums(scores, self.info)
        self._total = self._total.plus(added)
        self._recent = self._recent.plus(added)
        if self._recent.num_items >= WINDOW_ITEMS:
            self._earlier, self._recent = self._recent, _Sums(len(self.info.labels))


class _Sums:
    """Sums over items.

    by_label: int64 [num_labels], items by predicted label.
    by_confidence: int64 [num_bounds + 1], items by bucket of confidence, not cumulative.
    confidence: the sum of the items' best scores.
    """

    def __init__(self, num_labels: int) -> None:
        self.by_label = np.zeros(num_labels, np.int64)
        self.by_confidence = np.zeros(len(CONFIDENCES) + 1, np.int64)
        self.confidence = 0.0

    @property
    def num_items(self) -> int:
        return int(self.by_confidence.sum())

    def plus(self, other: "_Sums") -> "_Sums":
        both = _Sums(len(self.by_label))
        both.by_label = self.by_label + other.by_label
        both.by_confidence = self.by_confidence + other.by_confidence
        both.confidence = self.confidence + other.confidence
        return both


def _sums(scores: NDArray[np.float32], info: ModelInfo) -> _Sums:
    sums = _Sums(scores.shape[1])
    best = scores.max(axis=1)
    if info.has_independent_labels:
        sums.by_label = assigned(scores, info).sum(axis=0)
    else:
        sums.by_label = np.bincount(scores.argmax(axis=1), minlength=scores.shape[1])
    upper = np.searchsorted(_BOUNDS, best)  # a value equal to a bound falls into the bucket below it
    sums.by_confidence = np.bincount(upper, minlength=len(CONFIDENCES) + 1)
    sums.confidence = float(best.sum(dtype=np.float64))
    return sums


def label_drift(recent: _Sums, info: ModelInfo) -> float | None:
    """Total variation distance, from 0 to 1, between recent label shares and those of the card.

    None if the card has no shares or there are too few recent items.
    """
    shares = _served(info).get("labels")
    if not isinstance(shares, Mapping) or recent.num_items < MIN_DRIFT_ITEMS or not recent.by_label.sum():
        return None
    total = int(recent.by_label.sum())
    by_name: Counter[str] = Counter()
    for label, count in zip(info.labels, recent.by_label.tolist(), strict=True):
        by_name[label] += count
    return 0.5 * sum(abs(count / total - float(shares.get(label, 0.0))) for label, count in by_name.items())


def confidence_drift(recent: _Sums, info: ModelInfo) -> float | None:
    """The largest gap between the recent and the card's distribution function, at the bounds in the card.

    None if the card has no distribution or there are too few recent items.
    """
    usual = _served(info).get("confidence")
    if not isinstance(usual, Mapping) or recent.num_items < MIN_DRIFT_ITEMS:
        return None
    now = recent.by_confidence.cumsum() / recent.num_items
    gaps = [
        abs(now[at] - float(usual[str(bound)])) for at, bound in enumerate(CONFIDENCES) if str(bound) in usual
    ]
    return float(max(gaps)) if gaps else None


def _served(info: ModelInfo) -> Mapping[str, Any]:
    extra = info.card.get("extra")
    served = extra.get(SERVED) if isinstance(extra, Mapping) else None
    return served if isinstance(served, Mapping) else {}
