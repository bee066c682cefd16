"""Memory layouts for a layer's experts on a CPU, each with its arithmetic. `packed` chooses among them."""

from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from fewshard_kernels.moe_ffn.options import ExpertWeights, activate
from fewshard_kernels.onednn import ONEDNN_ACTIVATIONS


class Layout(Protocol):
    """The experts of one layer in one layout; `expert` takes rows of `dtype` and supports no gradients."""

    @property
    def name(self) -> str: ...

    @property
    def dtype(self) -> torch.dtype: ...

    @property
    def num_bytes(self) -> int: ...

    def expert(self, rows: Tensor, expert: int, activation: str) -> Tensor:
        """One expert over `rows` [R, H], R > 0, without the router's weight."""


class PlainLayout:
    """The original weights, not copied. Its matrix-vector product is hard to beat at one or two rows."""

    num_bytes = 0

    def __init__(self, weights: ExpertWeights, gated: bool) -> None:
        self.dtype = weights.w1.dtype
        self.name = f"plain {_word(self.dtype)}"
        self._gated = gated
        self._up, self._up_bias = weights.w1.unbind(), _unbind(weights.b1, weights.w1)
        self._down, self._down_bias = weights.w2.unbind(), _unbind(weights.b2, weights.w1)

    def expert(self, rows: Tensor, expert: int, activation: str) -> Tensor:
        projected = F.linear(rows, self._up[expert], self._up_bias[expert])
        return F.linear(
            activate(projected, activation, self._gated), self._down[expert], self._down_bias[expert]
        )


class TransposedLayout:
    """W x^T in place of x W^T, in float32.

    From about eight rows on, BLAS multiplies a tall matrix by few columns faster than few rows by a wide
    matrix. float32 weights are used in place; others are copied.
    """

    dtype = torch.float32
    name = "transposed float32"

    def __init__(self, weights: ExpertWeights, gated: bool) -> None:
        w1, b1, w2, b2 = weights
        self.num_bytes = 0 if w1.dtype == torch.float32 else 4 * (w1.numel() + w2.numel())
        self._gated = gated
        self._up, self._up_bias = w1.float().unbind(), _unbind(_column(b1), w1)
        self._down, self._down_bias = w2.float().unbind(), _unbind(_column(b2), w1)

    def expert(self, rows: Tensor, expert: int, activation: str) -> Tensor:
        projected = _multiply(self._up[expert], rows.t(), self._up_bias[expert])
        hidden = activate(projected, activation, self._gated, dim=0)
        return _multiply(self._down[expert], hidden, self._down_bias[expert]).t()


class OneDnnLayout:
    """Weights reordered once into oneDNN's blocked format; its kernels fuse the activation and the gate."""

    def __init__(self, weights: ExpertWeights, gated: bool, dtype: torch.dtype) -> None:
        self.dtype = dtype
        self.name = f"packed {_word(dtype)}"
        self.num_bytes = dtype.itemsize * (weights.w1.numel() + weights.w2.numel())
        w1, b1, w2, b2 = weights
        gate_rows = w1.shape[1] // 2 if gated else w1.shape[1]
        self._activated = _pack(w1[:, :gate_rows], dtype)
        self._activated_bias = _unbind(None if b1 is None else b1[:, :gate_rows].to(dtype), w1)
        self._up = _pack(w1[:, gate_rows:], dtype) if gated else None
        self._up_bias = _unbind(None if b1 is None else b1[:, gate_rows:].to(dtype), w1)
        self._down = _pack(w2, dtype)
        self._down_bias = _unbind(None if b2 is None else b2.to(dtype), w1)

    def expert(self, rows: Tensor, expert: int, activation: str) -> Tensor:
        linear = torch.ops.mkldnn._linear_pointwise
        kind, variant = ONEDNN_ACTIVATIONS[activation]
        hidden = linear(rows, self._activated[expert], self._activated_bias[expert], kind, [], variant)
        if self._up is not None:
            hidden = linear.binary(rows, hidden, self._up[expert], self._up_bias[expert], "mul")
        out: Tensor = linear(hidden, self._down[expert], self._down_bias[expert], "none", [], "")
        return out


class BatchedLayout:
    """W x^T for several consecutive experts in one batched product for each projection. Copies no weights.

    Each core computes its own experts and reads their weights sequentially, at the speed of a plain sum over
    them; separate products one after the other read at half that speed (docs/log.md).
    """

    num_bytes = 0

    def __init__(self, weights: ExpertWeights, gated: bool) -> None:
        self.dtype = weights.w1.dtype
        self.name = f"batched {_word(self.dtype)}"
        self._weights, self._gated = weights, gated

    def expert(self, rows: Tensor, expert: int, activation: str) -> Tensor:
        return self.experts(rows.unsqueeze(0), expert, activation).squeeze(0)

    def experts(self, rows: Tensor, first: int, activation: str) -> Tensor:
        """Experts `first` to first + n - 1 over their `rows` [n, R, H]; [n, R, H] without router weights."""
        w1, b1, w2, b2 = (
            None if tensor is None else tensor[first : first + rows.shape[0]] for tensor in self._weights
        )
        assert w1 is not None
        assert w2 is not None
        projected = _batched_multiply(w1, rows.transpose(1, 2), b1)
        hidden = activate(projected, activation, self._gated, dim=1)
        return _batched_multiply(w2, hidden, b2).transpose(1, 2)


def _batched_multiply(weights: Tensor, columns: Tensor, bias: Tensor | None) -> Tensor:
    if bias is None:
        return torch.bmm(weights, columns)
    return torch.baddbmm(bias.unsqueeze(2), weights, columns)


def _multiply(weight: Tensor, columns: Tensor, bias: Tensor | None) -> Tensor:
    return weight @ columns if bias is None else torch.addmm(bias, weight, columns)


def _column(bias: Tensor | None) -> Tensor | None:
    return None if bias is None else bias.float().unsqueeze(2)


def _pack(weights: Tensor, dtype: torch.dtype) -> list[Tensor]:
    reorder = torch.ops.mkldnn._reorder_linear_weight
    return [reorder(expert.to(dtype).contiguous()) for expert in weights]


def _unbind(bias: Tensor | None, like: Tensor) -> tuple[Tensor | None, ...]:
    return (None,) * like.shape[0] if bias is None else bias.contiguous().unbind()


def _word(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
