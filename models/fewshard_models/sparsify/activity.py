"""What a text encoder's feed-forward networks see and do on a sample; for pruning and for making experts."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from fewshard_models.text import FewshardTextForSequenceClassification, pack

Text = FewshardTextForSequenceClassification


def ffn_inputs(model: Text, sample: Sequence[Sequence[int]]) -> list[Tensor]:
    """What enters each layer's feed-forward network, fp32 [T, H], over the tokenised sample."""
    return _record(model, sample, lambda layer: layer.ffn, lambda inputs, _: inputs[0])


def ffn_units(model: Text, sample: Sequence[Sequence[int]]) -> list[Tensor]:
    """The activated hidden units of each dense layer, fp32 [T, intermediate_size]."""
    return _record(model, sample, lambda layer: layer.ffn.down, lambda inputs, _: inputs[0])


def importance(units: Tensor, down: Tensor) -> Tensor:
    """How much each unit moves the layer's output: its mean size over `units` [T, I] times the norm of its
    column in `down` [H, I]; fp32 [I]."""
    sizes: Tensor = units.abs().mean(dim=0) * down.norm(dim=0)
    return sizes


def _record(model: Text, sample: Sequence[Sequence[int]], where: Any, what: Any) -> list[Tensor]:
    seen: list[Tensor] = []
    hooks = [
        where(layer).register_forward_hook(
            lambda _, inputs, output: seen.append(what(inputs, output).detach())
        )
        for layer in model.layers
    ]
    device = next(model.parameters()).device
    with torch.inference_mode():
        model.eval().forward_packed(pack(list(sample), None, device))
    for hook in hooks:
        hook.remove()
    return [tensor.clone() for tensor in seen]
