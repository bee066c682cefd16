"""Looks more closely at a sample of a text model's traffic: quiet units, and experts by predicted class."""

import logging
import random
import threading
from collections import deque
from collections.abc import Sequence

import numpy as np

from fewshard_models.text import FewshardTextForSequenceClassification
from fewshard_models.text.signs import Signs, signs_of
from fewshard_serve.core import Diagnosis, ModelInfo

logger = logging.getLogger(__name__)

WINDOW_ITEMS = 200


class Diagnosing:
    """`share` of the items, each with a pass of its own; `look` is called on the runner's thread."""

    def __init__(self, network: FewshardTextForSequenceClassification, info: ModelInfo, share: float) -> None:
        self._network = network
        self._share = share
        self._random = random.Random()
        self._lock = threading.Lock()
        self._sparsity: deque[np.ndarray] = deque(maxlen=WINDOW_ITEMS)
        self._experts: np.ndarray | None = None
        self._num_labels = len(info.labels)
        self._num_items = 0

    def look(self, token_ids: Sequence[Sequence[int]]) -> None:
        """At one of these texts, by the chance that makes it the share of all; at most one a batch."""
        if not token_ids or self._random.random() >= self._share * len(token_ids):
            return
        try:
            self._keep(signs_of(self._network, [self._random.choice(token_ids)]))
        except Exception:  # the batch is answered already, and a closer look must not cost it
            logger.exception("a text could not be looked at; no more is tried")
            self._share = 0.0

    def _keep(self, signs: Signs) -> None:
        label = int(signs.logits[0].argmax())
        with self._lock:
            self._num_items += 1
            self._sparsity.append(signs.sparsity[0])
            if self._experts is None:
                self._experts = np.zeros((self._num_labels, *signs.experts.shape[1:]), np.int64)
            self._experts[label] += signs.experts[0]

    def read(self) -> Diagnosis | None:
        """None before the first item."""
        with self._lock:
            if self._experts is None:
                return None
            means = np.mean(list(self._sparsity), axis=0)
            return Diagnosis(self._num_items, tuple(map(float, means)), self._experts.copy())
