"""Linear layers with 2:4 or block-sparse weights, which run sparse only where that was measured faster.

Called by models that were pruned. Both patterns go through torch: semi-structured tensors and BSR. A
Triton kernel of our own for blocks joins as a third candidate only when it is measured faster than these.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from fewshard_kernels.gate import DENSE, Gate, Key, bucket
from fewshard_kernels.sparse_linear.packing import SparseWeight, pack_sparse

__all__ = ["SparseWeight", "pack_sparse", "sparse_linear"]

_SPARSE = "sparse"


def sparse_linear(x: Tensor, weight: SparseWeight, bias: Tensor | None = None, *, gate: Gate) -> Tensor:
    """y = x W^T + bias, W [O, I] from `pack_sparse`: sparse where `gate` finds it faster, else dense.

    `x` [..., I] and `bias` [O] or None in the dtype and on the device of the weight; returns y [..., O] in
    that dtype, contiguous. The first call for each power of two of rows measures both paths on its rows, for
    some milliseconds; while a CUDA graph is captured nothing is measured, and what is unknown runs dense. So
    does whatever asks for a gradient. A NaN in `x` reaches its own row of y; on the sparse path, only where a
    kept weight reads it. Raises ValueError where shapes, dtypes or devices do not fit.
    """
    _check(x, weight.dense, bias)
    rows = x.reshape(-1, x.shape[-1])
    path = _choose(rows, weight, bias, gate)
    y = _sparse(rows, weight, bias) if path == _SPARSE else F.linear(rows, weight.dense, bias)
    return y.view(*x.shape[:-1], weight.dense.shape[0])


def _choose(rows: Tensor, weight: SparseWeight, bias: Tensor | None, gate: Gate) -> str:
    asks_gradient = torch.is_grad_enabled() and (
        rows.requires_grad or (bias is not None and bias.requires_grad)
    )
    if not rows.shape[0] or asks_gradient:
        return DENSE
    key = _key(rows, weight)
    if rows.is_cuda and torch.cuda.is_current_stream_capturing():
        known = gate.known(key)
        return DENSE if known is None else known.chosen
    return gate.choose(key, _candidates(rows, weight, bias))


def _candidates(rows: Tensor, weight: SparseWeight, bias: Tensor | None) -> dict[str, Callable[[], object]]:
    calls: dict[str, Callable[[], Tensor]] = {DENSE: lambda: F.linear(rows, weight.dense, bias)}
    if weight.compressed is not None:
        calls[_SPARSE] = lambda: _sparse(rows, weight, bias)
    return {name: _waiting(call, rows) for name, call in calls.items()}


def _waiting(call: Callable[[], Tensor], rows: Tensor) -> Callable[[], object]:
    """The call and all its work on the device: the gate's clock is one of the host."""

    def wait() -> None:
        call()
        if rows.is_cuda:
            torch.cuda.synchronize(rows.device)

    return wait


def _sparse(rows: Tensor, weight: SparseWeight, bias: Tensor | None) -> Tensor:
    assert weight.compressed is not None, "the gate chose a form that does not exist. This is a bug."
    if rows.is_cuda:
        return F.linear(rows, weight.compressed, bias)
    # On a CPU F.linear would go through a slower layout of BSR; the product the other way round does not.
    y = (weight.compressed @ rows.T).T
    return (y if bias is None else y + bias).contiguous()


def _key(rows: Tensor, weight: SparseWeight) -> Key:
    out, width = weight.dense.shape
    op = f"sparse_linear {weight.form}" + (f" ({weight.reason})" if weight.reason else "")
    dtype = str(rows.dtype).removeprefix("torch.")
    return Key(_device_name(rows.device), op, (out, width), dtype, bucket(rows.shape[0]))


def _device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{device.type} ({torch.backends.cpu.get_cpu_capability()}, {torch.get_num_threads()} threads)"


def _check(x: Tensor, weight: Tensor, bias: Tensor | None) -> None:
    out, width = weight.shape
    if x.ndim < 1 or x.shape[-1] != width:
        raise ValueError(f"x must be [..., {width}] to fit the weight {[out, width]}, got {list(x.shape)}")
    if bias is not None and tuple(bias.shape) != (out,):
        raise ValueError(f"bias must be [{out}] to fit the weight {[out, width]}, got {list(bias.shape)}")
    for name, tensor in (("x", x), ("bias", bias)):
        if tensor is not None and (tensor.dtype, tensor.device) != (weight.dtype, weight.device):
            is_, wanted = f"{tensor.dtype} on {tensor.device}", f"{weight.dtype} on {weight.device}"
            raise ValueError(f"{name} is {is_} but the weight is {wanted}; move or cast one of them")
