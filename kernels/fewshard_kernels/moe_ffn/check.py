"""Argument checks of `moe_ffn`: shapes, dtypes, devices and options. Each failure states its reason."""

import torch
from torch import Tensor

from fewshard_core.formats import FORMATS
from fewshard_kernels.moe_ffn.options import ACTIVATIONS, SCORINGS, ExpertWeights, MoeOptions, Routing


def check_weights(weights: ExpertWeights, gated: bool) -> None:
    """Raise ValueError unless the four tensors agree in shape, dtype and device."""
    w1, b1, w2, b2 = weights
    if w1.ndim != 3:
        raise ValueError(f"w1 must be [E, {'2I' if gated else 'I'}, H], got {list(w1.shape)}")
    num_experts, width, hidden = w1.shape
    if not num_experts:
        raise ValueError("there must be at least one expert, got 0")
    if gated and width % 2:
        raise ValueError(f"w1 of gated experts must be [E, 2I, H]; {width} is odd")
    *others, last = dict.fromkeys(each.storage for each in FORMATS)
    if str(w1.dtype).removeprefix("torch.") not in (*others, last):
        raise ValueError(f"w1 is {w1.dtype}; experts are {', '.join(others)} or {last}")
    fits = f"to fit {'gated ' if gated else ''}w1 {list(w1.shape)}"
    _check_tensor("b1", b1, (num_experts, width), fits, w1)
    _check_tensor("w2", w2, (num_experts, hidden, width // 2 if gated else width), fits, w1)
    _check_tensor("b2", b2, (num_experts, hidden), fits, w1)


def check_rows(x: Tensor, hidden: int, like: Tensor) -> None:
    """Raise ValueError unless `x` is [T, H] with the dtype and device of the experts."""
    if x.ndim != 2 or x.shape[1] != hidden:
        raise ValueError(f"x must be [T, H] with H {hidden} as in w1, got {list(x.shape)}")
    _check_tensor("x", x, (x.shape[0], hidden), "", like)


def check_router(x: Tensor, router: Tensor | Routing, num_experts: int) -> None:
    """Raise ValueError unless the router fits, or the given routing has one weight per chosen expert.

    `route` checks the range of given expert indices, where they can be read without stalling the device.
    """
    if not isinstance(router, Routing):
        _check_tensor("router", router, (num_experts, x.shape[1]), "to fit the experts", x, same_dtype=False)
        return
    weights, experts = router
    if experts.ndim != 2 or experts.shape[0] != x.shape[0]:
        raise ValueError(f"routing.experts must be [T, k] with T {x.shape[0]}, got {list(experts.shape)}")
    if experts.dtype not in (torch.int32, torch.int64):
        raise ValueError(f"routing.experts is {experts.dtype}; expert indices are int32 or int64")
    _check_tensor("routing.experts", experts, tuple(experts.shape), "", x, same_dtype=False)
    _check_tensor(
        "routing.weights", weights, tuple(experts.shape), "to fit routing.experts", x, same_dtype=False
    )


def check_options(x: Tensor, num_experts: int, options: MoeOptions) -> None:
    """Raise ValueError for an option that does not exist, is out of range, or does not fit `x`."""
    if options.activation not in ACTIVATIONS:
        raise ValueError(f"no activation {options.activation!r}; there are {', '.join(ACTIVATIONS)}")
    if options.scoring not in SCORINGS:
        raise ValueError(f"no scoring {options.scoring!r}; there are {', '.join(SCORINGS)}")
    if not 1 <= options.top_k <= num_experts:
        raise ValueError(f"top_k must be from 1 to the {num_experts} experts, got {options.top_k}")
    if not 0 <= options.dropout <= 1:
        raise ValueError(f"dropout must be from 0 to 1, got {options.dropout}")
    mask = options.expert_mask
    if mask is not None and mask.dtype != torch.bool:
        raise ValueError(f"expert_mask is {mask.dtype}; it must be bool")
    _check_tensor("expert_mask", mask, (num_experts,), "to fit the experts", x, same_dtype=False)
    _check_combine(x, options)


def _check_combine(x: Tensor, options: MoeOptions) -> None:
    _check_tensor("residual", options.residual, tuple(x.shape), "to fit x", x)
    if options.norm is None:
        return
    if options.residual is None:
        raise ValueError("norm is applied to residual + y; give a residual too")
    weight, bias, _ = options.norm
    _check_tensor("norm.weight", weight, (x.shape[1],), "to fit x", x, same_dtype=False)
    _check_tensor("norm.bias", bias, (x.shape[1],), "to fit x", x, same_dtype=False)


def _check_tensor(
    name: str, tensor: Tensor | None, shape: tuple[int, ...], fits: str, like: Tensor, same_dtype: bool = True
) -> None:
    if tensor is None:
        return
    if tuple(tensor.shape) != shape:
        raise ValueError(f"{name} must be {list(shape)} {fits}, got {list(tensor.shape)}")
    if tensor.device != like.device:
        raise ValueError(
            f"{name} is on {tensor.device} but the others are on {like.device}; move them together"
        )
    if same_dtype and tensor.dtype != like.dtype:
        raise ValueError(f"{name} is {tensor.dtype} but the others are {like.dtype}; cast one of them")
