"""Products of 8-bit rows and 8-bit weights on a CPU, through oneDNN; sums are exact in int32.

The encoder's linear layers, `moe_ffn`'s experts and the CNN's convolutions are made of these. A row's result
depends on that row alone: scales are constants, never taken from the batch.
"""

import warnings
from dataclasses import dataclass

import torch
from torch import Tensor

from fewshard_kernels.onednn import ONEDNN_ACTIVATIONS

MAX_WEIGHT = 127
"""Weights lie in -127..127, so that each has its negative."""
MAX_ROW = 255

warnings.filterwarnings("ignore", message=".*quantize_per_tensor.*", module="fewshard_kernels.int8")


@dataclass(frozen=True, slots=True)
class Quantisation:
    """An affine code for fractions: q = round(x / scale) + zero_point, cut to 0..255.

    scale: fraction per step, above 0.
    zero_point: the code of 0.
    """

    scale: float
    zero_point: int

    @classmethod
    def of_range(cls, low: float, high: float) -> "Quantisation":
        """The code whose ends are `low` and `high`; the range is widened to hold 0, which is exact.

        >>> Quantisation.of_range(-1.0, 4.1)
        Quantisation(scale=0.02, zero_point=50)
        """
        low, high = min(low, 0.0), max(high, 0.0)
        scale = (high - low) / MAX_ROW or 1.0
        return cls(round(scale, 12), round(-low / scale))

    def encode(self, x: Tensor) -> Tensor:
        """Fractions of any shape to uint8 of the same layout in memory. NaN becomes 0: check for it before.

        >>> Quantisation(0.5, 10).encode(torch.tensor([-9.0, 0.0, 0.6])).tolist()
        [0, 10, 11]
        """
        return _bytes(torch.quantize_per_tensor(x.float(), self.scale, self.zero_point, torch.quint8))

    def decode(self, coded: Tensor) -> Tensor:
        """uint8 to fp32.

        >>> Quantisation(0.5, 10).decode(torch.tensor([0, 10, 11], dtype=torch.uint8)).tolist()
        [-5.0, 0.0, 0.5]
        """
        return (coded.float() - self.zero_point) * self.scale

    def sum(self, a: Tensor, a_code: "Quantisation", b: Tensor, b_code: "Quantisation") -> Tensor:
        """The sum of two tensors uint8 of one shape, each in its code; uint8 in this one.

        >>> half, tenth = Quantisation(0.5, 0), Quantisation(0.1, 100)
        >>> a, b = torch.tensor([2], dtype=torch.uint8), torch.tensor([103], dtype=torch.uint8)
        >>> Quantisation(0.25, 1).sum(a, half, b, tenth).tolist()  # 1.0 + 0.3 is 5.2 steps
        [6]
        """
        named = [
            torch._make_per_tensor_quantized_tensor(each, code.scale, code.zero_point)
            for each, code in ((a, a_code), (b, b_code))
        ]
        return _bytes(torch.ops.quantized.add(*named, self.scale, self.zero_point))


def _bytes(coded: Tensor) -> Tensor:
    """The codes of a tensor of torch's quantised type, not copied as `int_repr` would."""
    plain = torch.empty(0, dtype=torch.uint8)
    return plain.set_(coded.untyped_storage(), coded.storage_offset(), coded.shape, coded.stride())


def quantised_weight(weight: Tensor) -> tuple[Tensor, Tensor]:
    """int8 of the shape of `weight` [O, ...], and the scale of each of the O outputs, fp32 [O].

    Symmetric: a weight is its number times its output's scale; the largest of an output is 127. An output of
    zeros alone has scale 1.

    >>> coded, scale = quantised_weight(torch.tensor([[0.5, -1.0], [0.0, 0.0]]))
    >>> coded.tolist(), [round(each, 4) for each in scale.tolist()]
    ([[64, -127], [0, 0]], [0.0079, 1.0])
    """
    largest = weight.float().abs().flatten(1).amax(dim=1)
    scale = torch.where(largest > 0, largest / MAX_WEIGHT, 1.0)
    wide = scale.view(-1, *[1] * (weight.ndim - 1))
    return (weight.float() / wide).round().clamp_(-MAX_WEIGHT, MAX_WEIGHT).to(torch.int8), scale


def without_zero_point(weight: Tensor, scale: Tensor, bias: Tensor | None, rows: Quantisation) -> Tensor:
    """fp32 [O]: the bias with which rows may be multiplied as if their zero point were 0.

    The zero point adds the same to all rows of an output; oneDNN would add it anew in each product, in an
    eighth of the product's time (docs/log.md).

    >>> weight, scale = quantised_weight(torch.tensor([[0.5, -1.0]]))
    >>> round(without_zero_point(weight, scale, None, Quantisation(0.1, 20)).item(), 3)
    0.992
    """
    sums = weight.flatten(1).to(torch.int64).sum(dim=1).double()
    shift = rows.scale * rows.zero_point * scale.double() * sums
    plain = torch.zeros(len(weight), dtype=torch.float64) if bias is None else bias.double()
    return (plain - shift).float()


class Int8Product:
    """act(x W^T + b) for coded rows x [T, I]: [T, O] in `out`, a dtype or a code.

    weight, scale: int8 [O, I] and fp32 [O], as `quantised_weight` returns them.
    bias: [O] or None.
    rows: the code of x.
    activation: one of `ONEDNN_ACTIVATIONS`, or None; it is computed in fp32, before rounding.
    """

    def __init__(
        self,
        weight: Tensor,
        scale: Tensor,
        bias: Tensor | None,
        rows: Quantisation,
        out: Quantisation | torch.dtype,
        activation: str | None = None,
    ) -> None:
        self._weight: Tensor = torch.ops.onednn.qlinear_prepack(weight.contiguous(), None)
        self._scale = scale.float().contiguous()
        self._no_zero_points = torch.zeros(len(weight), dtype=torch.int64)
        self._bias = without_zero_point(weight, scale, bias, rows)
        self._rows = rows.scale
        self._kind, self._variant = ("none", "") if activation is None else ONEDNN_ACTIVATIONS[activation]
        self._out = (
            (out.scale, out.zero_point, torch.uint8) if isinstance(out, Quantisation) else (1.0, 0, out)
        )
        self.num_bytes = weight.numel()

    def __call__(self, rows: Tensor) -> Tensor:
        product: Tensor = torch.ops.onednn.qlinear_pointwise(
            rows,
            self._rows,
            0,
            self._weight,
            self._scale,
            self._no_zero_points,
            self._bias,
            *self._out,
            self._kind,
            [],
            self._variant,
        )
        return product
