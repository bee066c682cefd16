"""Where the tokens of an MoE model went lately; read by the metrics and by `protocol.experts`."""

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
    """Counts since the model was loaded, and of the last `window_s` seconds."""

    total: ExpertCounts
    window: ExpertCounts
    window_s: float


class RoutingWindow:
    """Remembers earlier counts, so that a reader sees what has changed within about `window_s`.

    Only a read copies counts off the device. Where nobody has read for longer, the window is longer and
    says so. `read` may be called from any thread.
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
        """None where the model has no experts."""
        with self._lock:
            counts, now = self._read_counts(), self._clock()
            if counts is None:
                return None
            base_at, base = self._base(now)
            if now - self._marks[-1][0] >= self._window_s / NUM_MARKS:
                self._marks.append((now, counts))
            return Routing(counts, counts if base is None else counts - base, now - base_at)

    def _base(self, now: float) -> tuple[float, ExpertCounts | None]:
        """The newest mark that is a whole window old, else the oldest there is."""
        while len(self._marks) > 1 and self._marks[1][0] <= now - self._window_s:
            self._marks.popleft()
        return self._marks[0]


def imbalance_ratio(counts: ExpertCounts) -> NDArray[np.float64]:
    """The busiest expert's tokens over the mean, by layer; NaN where nothing was routed."""
    mean = counts.tokens.mean(axis=1)
    return _ratio(counts.tokens.max(axis=1), mean)


def entropy_ratio(counts: ExpertCounts) -> NDArray[np.float64]:
    """The router's mean entropy over its largest possible value, by layer; NaN where nothing was routed."""
    num_experts = counts.tokens.shape[1]
    most = counts.rows * np.log(max(num_experts, 2))
    return _ratio(counts.entropy, most)


def num_dead_experts(counts: ExpertCounts) -> NDArray[np.float64]:
    """Experts that received nothing, by layer; NaN where nothing was routed."""
    dead = (counts.tokens == 0).sum(axis=1).astype(np.float64)
    return np.where(counts.rows > 0, dead, np.nan)


def expert_use_ratio(counts: ExpertCounts) -> NDArray[np.float64]:
    """Experts in effective use over those there are, by layer; NaN where nothing was routed.

    The perplexity of the experts' shares of the tokens: all where they are even, one where one gets all.
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
    """The routing of several replicas of one model; the longest of their windows is named."""
    return Routing(
        reduce(add, (part.total for part in parts)),
        reduce(add, (part.window for part in parts)),
        max(part.window_s for part in parts),
    )
