"""Observation of the text encoder: experts that each token chooses, and units near zero for each text.

The server applies it to a sample of its traffic, `benchmarks/ood_signal.py` to whole data sets.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from fewshard_models.text.feed_forward import DenseFeedForward, MoeFeedForward
from fewshard_models.text.layers import Int8Linear, choose_experts
from fewshard_models.text.modeling import FewshardTextForSequenceClassification
from fewshard_models.text.packing import PackedTokens, pack


@contextmanager
def watched_experts(network: FewshardTextForSequenceClassification) -> Iterator[list[Tensor]]:
    """Within the block, each expert layer that runs appends its choices: int64 [T, top_k], the best first.

    The choice is computed a second time from the same inputs, so that an unobserved network pays nothing.
    """
    chosen: list[Tensor] = []

    def note(layer: MoeFeedForward, inputs: tuple[Tensor, PackedTokens]) -> None:
        hidden, packed = inputs
        hidden = layer.rows(hidden[: packed.num_tokens])
        chosen.append(choose_experts(hidden, packed, layer.router, layer.config)[0].experts)

    layers = [layer for layer in network.modules() if isinstance(layer, MoeFeedForward)]
    hooks = [layer.register_forward_pre_hook(note) for layer in layers]
    try:
        yield chosen
    finally:
        for hook in hooks:
            hook.remove()


NEAR_ZERO = 0.05
"""Maximum magnitude of a quiet unit; GELU and ReLU leave most of their units there."""


@dataclass(frozen=True, slots=True)
class ActivationStats:
    """Statistics of N texts.

    logits: fp32 [N, C].
    sparsity: fp32 [N, layers], share of a layer's feed-forward units near zero over the text's tokens.
    entropy: fp32 [N, MoE layers], the router's entropy in nats, averaged over the tokens.
    experts: int64 [N, MoE layers, E], tokens by expert.
    """

    logits: NDArray[np.float32]
    sparsity: NDArray[np.float32]
    entropy: NDArray[np.float32]
    experts: NDArray[np.int64]


def signs_of(
    model: FewshardTextForSequenceClassification, token_ids: Sequence[Sequence[int]]
) -> ActivationStats:
    """Run the texts once and observe every layer; costs about twice a plain forward pass.

    In an expert layer, the units of the chosen experts are observed. The model must be in eval mode and
    entirely on one device.
    """
    packed = pack(list(token_ids), None, next(model.parameters()).device)
    seen: list[_Layer] = []
    with torch.inference_mode(), _watched(model, packed, seen.append):
        out = model.forward_packed(packed)
    routed = [layer for layer in seen if layer.entropy is not None and layer.experts is not None]
    return ActivationStats(
        out.logits.float().cpu().numpy(),
        torch.stack([layer.sparsity for layer in seen], dim=1).cpu().numpy(),
        _stacked([layer.entropy for layer in routed], (len(token_ids), 0), torch.float32),
        _stacked([layer.experts for layer in routed], (len(token_ids), 0, 0), torch.int64),
    )


@dataclass(frozen=True, slots=True)
class _Layer:
    """Statistics of a layer: `sparsity` [N]; for an expert layer also `entropy` [N] and `experts` [N, E]."""

    sparsity: Tensor
    entropy: Tensor | None = None
    experts: Tensor | None = None


@contextmanager
def _watched(
    model: FewshardTextForSequenceClassification, packed: PackedTokens, keep: Callable[[_Layer], None]
) -> Iterator[None]:
    """Within the block, pass the statistics of every feed-forward network to `keep`, in order."""
    with ExitStack() as stack:
        for layer in model.layers:
            ffn: Any = layer.ffn
            watched: nn.Module = ffn.down if isinstance(ffn, DenseFeedForward) else ffn
            handle = watched.register_forward_pre_hook(
                lambda _, inputs, ffn=ffn: keep(_look(ffn, inputs[0][: packed.num_tokens], packed))
            )
            stack.callback(handle.remove)
        yield


def _look(ffn: nn.Module, inputs: Tensor, packed: PackedTokens) -> _Layer:
    if isinstance(ffn, MoeFeedForward):
        return _look_at_experts(ffn, inputs, packed)
    assert isinstance(ffn, DenseFeedForward)
    # The units of an 8-bit layer are coded for the next one.
    if isinstance(ffn.down, Int8Linear) and inputs.dtype == torch.uint8:
        inputs = ffn.down.rows.decode(inputs)
    return _Layer(_by_item(_share_near_zero(inputs), packed))


def _look_at_experts(ffn: MoeFeedForward, hidden: Tensor, packed: PackedTokens) -> _Layer:
    routing, _ = choose_experts(hidden, packed, ffn.router, ffn.config)
    probabilities = (hidden.float() @ ffn.router.float().T).softmax(dim=-1)
    entropy = -(probabilities * probabilities.clamp_min(1e-20).log()).sum(dim=-1)
    chosen = torch.zeros_like(probabilities).scatter(1, routing.experts, 1.0)
    sparsity = torch.zeros(len(hidden), device=hidden.device)
    for expert in range(len(ffn.w1)):
        rows = chosen[:, expert].nonzero()[:, 0]
        sparsity[rows] += _share_near_zero(ffn.units(hidden[rows], expert)) / routing.experts.shape[1]
    lengths = packed.lengths_tensor.unsqueeze(1)
    by_expert = (_by_item(chosen, packed) * lengths).round().long()
    return _Layer(_by_item(sparsity, packed), _by_item(entropy, packed), by_expert)


def _share_near_zero(units: Tensor) -> Tensor:
    """The share of units near zero: [T, I] to fp32 [T]."""
    return (units.abs() <= NEAR_ZERO).float().mean(dim=-1)


def _by_item(values: Tensor, packed: PackedTokens) -> Tensor:
    """Means over each item's tokens: [T] -> [N], [T, E] -> [N, E]."""
    lengths = packed.lengths_tensor.to(values.device)
    item = torch.repeat_interleave(torch.arange(len(lengths), device=values.device), lengths)
    sums = torch.zeros(len(lengths), *values.shape[1:], device=values.device).index_add(
        0, item, values.float()
    )
    return sums / lengths.reshape(-1, *[1] * (values.dim() - 1))


def _stacked(layers: Sequence[Tensor | None], empty: tuple[int, ...], dtype: torch.dtype) -> NDArray[Any]:
    found = [layer for layer in layers if layer is not None]
    return (torch.stack(found, dim=1) if found else torch.zeros(empty, dtype=dtype)).cpu().numpy()
