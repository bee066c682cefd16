"""Sums of routing statistics over the batches of one model. `PackedText` and `PaddedText` keep them."""

import threading
from collections.abc import Sequence

import torch
from torch import Tensor

from fewshard_core.values import ExpertCounts, TokenRouting
from fewshard_kernels import MoeStats


class RoutingTotals:
    """Sums of `MoeStats`. They stay on the device until they are read; any thread may read them."""

    def __init__(self, num_layers: int, num_experts: int, top_k: int, device: torch.device) -> None:
        shape = (num_layers, num_experts)
        self._top_k = top_k
        self._lock = threading.Lock()
        self._tokens = torch.zeros(shape, dtype=torch.int64, device=device)
        self._probability = torch.zeros(shape, dtype=torch.float64, device=device)
        self._entropy = torch.zeros(num_layers, dtype=torch.float64, device=device)

    def add(self, layers: Sequence[MoeStats]) -> None:
        with self._lock:
            self._tokens += torch.stack([stats.expert_rows for stats in layers])
            self._probability += torch.stack([stats.expert_probability for stats in layers])
            self._entropy += torch.stack([stats.entropy for stats in layers])

    def clear(self) -> None:
        with self._lock:
            for total in (self._tokens, self._probability, self._entropy):
                total.zero_()

    def copy(self) -> ExpertCounts:
        with self._lock:
            tokens = self._tokens.cpu().numpy().copy()
            return ExpertCounts(
                tokens=tokens,
                probability=self._probability.cpu().numpy().copy(),
                entropy=self._entropy.cpu().numpy().copy(),
                rows=tokens.sum(axis=1) // self._top_k,
                top_k=self._top_k,
            )


def fill_routing(
    wanted: Sequence[TokenRouting | None], lengths: Sequence[int], chosen: Sequence[Tensor]
) -> None:
    """Give each text that requested it its part of `chosen`, [sum of lengths, top_k] for each layer."""
    if not chosen:
        return
    by_item = zip(*(layer.split(list(lengths)) for layer in chosen), strict=True)
    for routing, layers in zip(wanted, by_item, strict=True):
        if routing is not None:
            routing.experts = [layer.tolist() for layer in layers]
