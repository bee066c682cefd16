"""Where the tokens of an MoE model went lately; read by the metrics and by `GET …/experts`."""

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

from fewshard_core.values import Diagnosis, ExpertCounts
from fewshard_serve.core import GroupState

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


def describe_routing(routing: Routing, group: GroupState | None = None) -> dict[str, Any]:
    """The body of `GET …/experts`: experts and shards are listed by number."""
    counts = routing.window
    num_layers, num_experts = counts.tokens.shape
    imbalances, entropies = imbalance_ratio(counts), entropy_ratio(counts)
    uses = expert_use_ratio(counts)
    return {
        "window_s": round(routing.window_s, 3),
        "num_layers": num_layers,
        "num_experts": num_experts,
        "top_k": counts.top_k,
        "group": _describe_group(group),
        "layers": [
            {
                "layer": layer,
                "rows": int(counts.rows[layer]),
                "tokens": counts.tokens[layer].tolist(),
                "tokens_total": routing.total.tokens[layer].tolist(),
                "placement": _placement(group, layer, num_experts),
                "shard_tokens": counts.by_shard[layer].tolist(),
                "shard_tokens_total": routing.total.by_shard[layer].tolist(),
                "imbalance_ratio": _number(imbalances[layer]),
                "router_entropy_ratio": _number(entropies[layer]),
                "expert_use_ratio": _number(uses[layer]),
                "dead_experts": _dead(counts, layer),
            }
            for layer in range(num_layers)
        ],
    }


def describe_diagnoses(parts: Sequence[Diagnosis], labels: Sequence[str]) -> dict[str, Any]:
    """What `GET …/experts` adds where items were looked at: tokens by predicted class, layer and expert."""
    if not parts:
        return {}
    tokens = reduce(add, (part.class_experts for part in parts))
    return {
        "class_items_sampled": sum(part.num_items for part in parts),
        "class_tokens": {label: tokens[at].tolist() for at, label in enumerate(labels)},
    }


def _placement(group: GroupState | None, layer: int, num_experts: int) -> list[list[int]]:
    """The experts of each shard; one shard has them all."""
    if group is None:
        return [list(range(num_experts))]
    return [list(experts) for experts in group.placement[layer]]


def _describe_group(group: GroupState | None) -> dict[str, Any] | None:
    if group is None:
        return None
    return {
        "shards": group.num_shards,
        "size": group.size,
        "generation": group.generation,
        "reforms_total": group.num_reforms,
        "placement_moves_total": group.num_moves,
        "degraded": group.is_degraded,
    }


def _dead(counts: ExpertCounts, layer: int) -> list[int]:
    """Experts that received nothing while others did."""
    return np.flatnonzero(counts.tokens[layer] == 0).tolist() if counts.rows[layer] else []


def _number(value: float) -> float | None:
    return None if np.isnan(value) else round(float(value), 6)
