"""Routing statistics of an MoE model over a recent window; the metrics and `protocol.experts` read them."""

import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import reduce
from operator import add
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fewshard_core.values import ExpertCounts

WINDOW_S = 60.0
NUM_MARKS = 12


@dataclass(frozen=True, slots=True)
class Routing:
    """Expert counts of one model.

    total: since the model was loaded.
    window: of the last `window_s` seconds.
    """

    total: ExpertCounts
    window: ExpertCounts
    window_s: float


class RoutingWindow:
    """Keeps earlier counts, so that a reader gets the change over about the last `window_s` seconds.

    Counts are copied from the device only by a read. After a long time without reads, the window is longer;
    `Routing.window_s` has its real length. Any thread may call `read`.
    """

    def __init__(
        self,
        read_counts: Callable[[], ExpertCounts | None],
        window_s: float = WINDOW_S,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._read_counts = read_counts
        self._window_s = window_s
        self._clock = clock
        self._lock = threading.Lock()
        self._marks: deque[tuple[float, ExpertCounts | None]] = deque([(clock(), None)])

    def read(self) -> Routing | None:
        """The counts now; None if the model has no experts."""
        with self._lock:
            counts, now = self._read_counts(), self._clock()
            if counts is None:
                return None
            base_at, base = self._base(now)
            if now - self._marks[-1][0] >= self._window_s / NUM_MARKS:
                self._marks.append((now, counts))
            return Routing(counts, counts if base is None else counts - base, now - base_at)

    def _base(self, now: float) -> tuple[float, ExpertCounts | None]:
        """The newest mark that is at least a whole window old, else the oldest mark."""
        while len(self._marks) > 1 and self._marks[1][0] <= now - self._window_s:
            self._marks.popleft()
        return self._marks[0]


def imbalance_ratio(counts: ExpertCounts) -> NDArray[np.float64]:
    """The tokens of the busiest expert divided by the mean, by layer; NaN if nothing was routed."""
    mean = counts.tokens.mean(axis=1)
    return _ratio(counts.tokens.max(axis=1), mean)


def worst_layers(counts: ExpertCounts, number: int) -> list[int]:
    """Up to so many layers in use, the one whose busiest expert is furthest from the mean first."""
    imbalances = imbalance_ratio(counts)
    in_use = np.flatnonzero(~np.isnan(imbalances))
    worst: list[int] = in_use[np.argsort(-imbalances[in_use], kind="stable")][:number].tolist()
    return worst


def entropy_ratio(counts: ExpertCounts) -> NDArray[np.float64]:
    """The router's mean entropy divided by its maximum, by layer; NaN if nothing was routed."""
    num_experts = counts.tokens.shape[1]
    most = counts.rows * np.log(max(num_experts, 2))
    return _ratio(counts.entropy, most)


def num_dead_experts(counts: ExpertCounts) -> NDArray[np.float64]:
    """The number of experts that received no tokens, by layer; NaN if nothing was routed."""
    dead = (counts.tokens == 0).sum(axis=1).astype(np.float64)
    return np.where(counts.rows > 0, dead, np.nan)


def expert_use_ratio(counts: ExpertCounts) -> NDArray[np.float64]:
    """The effective number of experts divided by their number, by layer; NaN if nothing was routed.

    The effective number is the perplexity of the experts' shares of the tokens. It is the number of experts
    if all shares are equal, and 1 if one expert gets all tokens.
    """
    num_experts = counts.tokens.shape[1]
    whole = counts.tokens.sum(axis=1, keepdims=True)
    shares = np.divide(counts.tokens, whole, out=np.zeros(counts.tokens.shape), where=whole > 0)
    logs = np.log(shares, out=np.zeros_like(shares), where=shares > 0)
    return np.where(whole[:, 0] > 0, np.exp(-(shares * logs).sum(axis=1)) / num_experts, np.nan)


def _ratio(part: NDArray[Any], whole: NDArray[Any]) -> NDArray[np.float64]:
    ratio = np.full(len(whole), np.nan)
    np.divide(part, whole, out=ratio, where=whole > 0)
    return ratio


def merge_routing(parts: Sequence[Routing]) -> Routing:
    """The sum over several replicas of one model. `window_s` is the longest of their windows."""
    return Routing(
        reduce(add, (part.total for part in parts)),
        reduce(add, (part.window for part in parts)),
        max(part.window_s for part in parts),
    )
