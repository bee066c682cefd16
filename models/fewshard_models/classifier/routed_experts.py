"""Watches the experts of a network of transformers: which of a pass's own tokens each of them gets.

`PaddedText` makes one for each network. Padding is not counted. Where experts go through transformers'
experts interface, padding is not even given to them. Routers differ; what they chose is read, not computed.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from fewshard_kernels import MoeStats, routing_stats


@dataclass(frozen=True, slots=True, eq=False)
class ExpertLayer:
    """A layer with experts.

    name: of `module` within the network.
    module: what holds the experts; for an architecture in `_CHOICES`, what chooses them.
    router: what computes the logits that the choice is made of; None if it is not known.
    """

    name: str
    module: Any
    router: nn.Module | None

    @property
    def num_experts(self) -> int:
        return int(self.module.num_experts)

    @property
    def has_interface(self) -> bool:
        """Whether `module` is called with hidden states [T, H], experts [T, k] and weights [T, k]."""
        return _has_interface(self.module)

    @property
    def scoring(self) -> str:
        """As in `routing_stats`. Routers that correct scores by a bias take the sigmoid (DeepSeek-V3)."""
        return "sigmoid" if hasattr(self.router, "e_score_correction_bias") else "softmax"


class Chosen(NamedTuple):
    """What one layer's router chose in a pass: experts int64 [T, k] of the own tokens, in their order."""

    experts: Tensor
    stats: MoeStats


class RoutedExperts:
    """The expert layers of a network, in their order.

    A pass outside `watched` is computed as if nobody watched. Passes must not overlap.
    """

    def __init__(self, network: nn.Module) -> None:
        self.layers = tuple(_found(network))
        self._chosen: list[Chosen] | None = None
        self._own: Tensor | None = None
        self._logits: Tensor | None = None
        for layer in self.layers:
            if not layer.has_interface:
                layer.module.register_forward_hook(partial(self._note_output, layer))
                continue
            layer.module.forward = partial(self._compute_own, layer, layer.module.forward)
            if layer.router is not None:
                layer.router.register_forward_hook(self._keep_logits)

    @contextmanager
    def watched(self, own: Tensor | None) -> Iterator[list[Chosen]]:
        """Within the block, each layer with experts that runs appends what its router chose.

        own: int64 [T], the rows of a pass [num_texts * length] that are tokens of texts; None for all.
        """
        chosen: list[Chosen] = []
        self._chosen, self._own = chosen, own
        try:
            yield chosen
        finally:
            self._chosen = self._own = self._logits = None

    def uncounted(self, chosen: list[Chosen], num_tokens: int) -> str:
        """Return why passes like the one that gave `chosen` cannot be counted; "" if they can.

        num_tokens: the own tokens of that pass.
        """
        if len(chosen) != len(self.layers):
            return f"{len(self.layers)} layers have experts, and {len(chosen)} ran"
        kinds = {
            (layer.num_experts, each.experts.shape[1])
            for layer, each in zip(self.layers, chosen, strict=True)
        }
        if len(kinds) > 1:
            return "its layers have different numbers of experts, or of experts a token"
        if any(len(each.experts) != num_tokens for each in chosen):
            return "it routes something else than tokens"
        return ""

    def _compute_own(
        self,
        layer: ExpertLayer,
        compute: Callable[..., Tensor],
        hidden: Tensor,
        experts: Tensor,
        weights: Tensor,
    ) -> Tensor:
        own = self._own
        if self._chosen is None or own is None:
            self._note(layer, experts, self._logits)
            return compute(hidden, experts, weights)
        self._note(layer, experts[own], None if self._logits is None else self._logits[own])
        y = torch.zeros_like(hidden)
        y[own] = compute(hidden[own], experts[own], weights[own])
        return y

    def _keep_logits(self, router: nn.Module, inputs: Any, output: Any) -> None:
        if self._chosen is not None:
            logits: Tensor = output[0]
            self._logits = logits.reshape(-1, logits.shape[-1])

    def _note_output(self, layer: ExpertLayer, module: nn.Module, inputs: Any, output: Any) -> None:
        if self._chosen is None:
            return
        experts, logits = _CHOICES[type(module).__name__](module, output)
        own = slice(None) if self._own is None else self._own
        self._note(layer, experts[own], None if logits is None else logits[own])

    def _note(self, layer: ExpertLayer, experts: Tensor, logits: Tensor | None) -> None:
        if self._chosen is None:
            return
        if logits is None:
            unknown = experts.new_full((), float("nan"), dtype=torch.float32)
            rows = torch.bincount(experts.flatten(), minlength=layer.num_experts)
            stats = MoeStats(rows, rows.new_zeros(rows.shape, dtype=torch.float32), unknown, unknown)
        else:
            stats = routing_stats(logits, experts, layer.scoring)
        self._chosen.append(Chosen(experts, stats))


def own_rows(lengths: list[int], length: int, side: str) -> Tensor | None:
    """Return the rows of texts' tokens in a pass [len(lengths) * length]; None if there is no padding.

    >>> own_rows([1, 3], 3, "left").tolist()
    [2, 3, 4, 5]
    """
    if min(lengths) == length:
        return None
    starts = [row * length + (length - own if side == "left" else 0) for row, own in enumerate(lengths)]
    return torch.cat([torch.arange(start, start + own) for start, own in zip(starts, lengths, strict=True)])


def _found(network: nn.Module) -> Iterator[ExpertLayer]:
    routers = tuple(_router_kinds(network))
    for name, module in network.named_modules():
        if _has_interface(module):
            beside = network.get_submodule(name.rpartition(".")[0]).children()
            router = next((each for each in beside if isinstance(each, routers)), None)
            yield ExpertLayer(name, module, router)
        elif type(module).__name__ in _CHOICES:
            yield ExpertLayer(name, module, module)


def _has_interface(module: nn.Module) -> bool:
    """Return whether transformers' `use_experts_implementation` decorates the module's class."""
    return hasattr(module, "_is_expert_parallel") and hasattr(module, "num_experts")


def _router_kinds(network: nn.Module) -> Iterator[type]:
    """Yield the classes whose first output transformers records as a router's logits."""
    for module in network.modules():
        recorders = (getattr(module, "_can_record_outputs", None) or {}).get("router_logits", [])
        for each in recorders if isinstance(recorders, list) else [recorders]:
            if getattr(each, "index", 0) == 0:
                kind: Any = getattr(each, "target_class", each)
                yield kind


def _of_jetmoe(router: Any, output: Any) -> tuple[Tensor, Tensor | None]:
    """JetMoE's router returns its tokens sorted by expert; the choice is that of its logits [T, E]."""
    logits: Tensor = output[-1]
    return logits.topk(router.top_k, dim=1).indices, logits


def _of_doge(layer: Any, output: Any) -> tuple[Tensor, Tensor | None]:
    """Doge adds the best scores of two halves of a key, [2, T, sqrt(E)], and takes the best sums.

    Its distribution over all E is never computed, and is not here.
    """
    scores, halves = output[1].topk(layer.num_keys, dim=-1)
    sums = (scores[0].unsqueeze(-1) + scores[1].unsqueeze(-2)).flatten(-2)
    experts = (halves[0].unsqueeze(-1) * layer.num_keys + halves[1].unsqueeze(-2)).flatten(-2)
    return experts.gather(-1, sums.topk(layer.top_k, dim=-1).indices), None


_CHOICES: dict[str, Callable[[Any, Any], tuple[Tensor, Tensor | None]]] = {
    "JetMoeTopKGating": _of_jetmoe,
    "DogeCDMoE": _of_doge,
}
"""Modules that choose experts without the interface: from their output, the experts [T, k] and the logits."""
