"""`experts_implementation="fewshard"`: runs MoE models of transformers on `fewshard_kernels.moe_ffn`.

For users of transformers; our own encoder calls the op directly.
"""

from functools import partial
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from transformers.activations import ACT2FN
from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS, _default_apply_gate

from fewshard_kernels import ExpertWeights, PackedCache, Routing, moe_ffn

NAME = "fewshard"
_ACTIVATIONS = ("gelu", "gelu_pytorch_tanh", "relu", "silu")

_packed: WeakKeyDictionary[nn.Module, PackedCache] = WeakKeyDictionary()


def register_experts(*, pack: bool = True) -> None:
    """Register "fewshard" as an experts implementation of transformers, for models loaded from then on.

    `pack`: in eval mode on a CPU without gradients, keep a packed copy of the experts beside the model's own
    (up to three times their memory, see `pack_experts`). Use False for models that fill the memory.
    A model whose experts this op does not support raises ValueError at its first forward pass, with
    alternatives.
    """
    ALL_EXPERTS_FUNCTIONS.register(NAME, partial(experts_forward, pack=pack))


def experts_forward(
    module: Any,
    hidden_states: Tensor,
    top_k_index: Tensor,
    top_k_weights: Tensor,
    *,
    pack: bool = False,
) -> Tensor:
    """One expert layer of transformers: `hidden_states` [T, H], `top_k_index` and `top_k_weights` [T, k].

    Returns [T, H] in the dtype of `hidden_states`. `module` must be decorated with transformers'
    `use_experts_implementation`: it holds the weights and describes their layout.
    """
    _refuse_unsupported(module)
    experts = _weights(module)
    packs = pack and not module.training and not torch.is_grad_enabled() and experts.w1.device.type == "cpu"
    routing = _routing(module, top_k_index, top_k_weights)
    weights = (_packed.setdefault(module, PackedCache()).get(experts, module.has_gate),) if packs else experts
    y, _ = moe_ffn(
        hidden_states.to(experts.w1.dtype),
        routing,
        *weights,
        activation=_activation(module),
        gated=module.has_gate,
    )
    return y.to(hidden_states.dtype)


def _weights(module: Any) -> ExpertWeights:
    first = "gate_up_proj" if module.has_gate else "up_proj"
    w1, w2 = getattr(module, first), module.down_proj
    if module.is_transposed:
        w1, w2 = w1.transpose(1, 2), w2.transpose(1, 2)
    if not module.has_bias:
        return ExpertWeights(w1, None, w2, None)
    return ExpertWeights(w1, getattr(module, f"{first}_bias"), w2, module.down_proj_bias)


def _routing(module: Any, experts: Tensor, weights: Tensor) -> Routing:
    """The routing; under expert parallelism, an index past the last expert marks one of another process."""
    if module._is_expert_parallel:
        elsewhere = experts >= module.num_experts
        return Routing(weights.masked_fill(elsewhere, 0.0), experts.clamp(max=module.num_experts - 1))
    return Routing(weights, experts)


def activation_of(module: Any) -> str:
    """Return the activation of an expert layer. Raises ValueError if `moe_ffn` cannot compute the layer."""
    _refuse_unsupported(module)
    return _activation(module)


def _activation(module: Any) -> str:
    for name in _ACTIVATIONS:
        if type(module.act_fn) is type(ACT2FN[name]):
            return name
    raise _unsupported(module, f"activation {type(module.act_fn).__name__}")


def _refuse_unsupported(module: Any) -> None:
    if module.has_gate and not module.is_concatenated:
        raise _unsupported(module, "interleaved gate and up projections")
    if module.has_gate and type(module)._apply_gate is not _default_apply_gate:
        raise _unsupported(module, "a gate of its own")
    if module.has_post_expert_norm:
        raise _unsupported(module, "a norm after each expert")


def _unsupported(module: Any, what: str) -> ValueError:
    return ValueError(
        f'{type(module).__name__} has {what}, which experts_implementation="{NAME}" does not compute; '
        'choose "eager" or "grouped_mm"'
    )
