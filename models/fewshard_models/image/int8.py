"""Our CNN in 8 bits for a CPU: maps are uint8 from the stem to the head, channels last.

oneDNN fuses no GELU into an 8-bit convolution, and similar activations take longer than the convolution. So
it makes codes of what comes before GELU, they are pooled as they are, and GELU is looked up.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fewshard_kernels import Quantisation, without_zero_point
from fewshard_models.image.convolution import max_pool


@dataclass(frozen=True, slots=True)
class Int8Weights:
    """A convolution with its norm folded in: int8 [O, I, kh, kw], fp32 scale [O] and bias [O]."""

    weight: Tensor
    scale: Tensor
    bias: Tensor


def folded_int8(
    weight: Tensor, scale: Tensor, bias: Tensor | None, norm: nn.BatchNorm2d | None
) -> Int8Weights:
    """Fold a norm in eval mode into a coded convolution: it changes scales and signs, and no number."""
    plain = torch.zeros(len(weight)) if bias is None else bias.detach().float()
    if norm is None:
        return Int8Weights(weight, scale, plain)
    assert norm.running_mean is not None
    assert norm.running_var is not None
    factor = norm.weight.detach().float() / (norm.running_var.float() + norm.eps).sqrt()
    sign = torch.where(factor < 0, -1, 1).to(torch.int8).view(-1, 1, 1, 1)
    shifted = (plain - norm.running_mean.float()) * factor + norm.bias.detach().float()
    # oneDNN takes no scale of 0.
    return Int8Weights(weight * sign, (scale * factor.abs()).clamp_min(1e-30), shifted)


class Int8Conv:
    """GELU(conv) from codes uint8 [N, I, H, W] to codes; with `pool`, 2x2 max-pooling before GELU.

    maps, before, after: the codes of the input, of what comes before GELU, and of the output.
    """

    def __init__(
        self,
        weights: Int8Weights,
        maps: Quantisation,
        before: Quantisation,
        after: Quantisation,
        *,
        padding: int,
        pool: bool,
    ) -> None:
        self._weight, self._scale = weights.weight, weights.scale
        self._bias = without_zero_point(weights.weight, weights.scale, weights.bias, maps)
        self._no_zero_points = torch.zeros(len(weights.weight), dtype=torch.int64)
        self._maps, self._before = maps, before
        self._padding, self._pool = padding, pool
        self._gelu = _table(before, after)
        self._by_shape: dict[torch.Size, Tensor] = {}
        self._by_order: dict[bytes, Tensor] = {}

    def __call__(self, maps: Tensor) -> Tensor:
        if self._padding:
            # Zeros have the zero point's code, which the bias takes for granted everywhere.
            maps = F.pad(maps, [self._padding] * 4, value=self._maps.zero_point)
        out = self._convolve(maps)
        return look_up(max_pool(out) if self._pool else out, self._gelu)

    def _convolve(self, maps: Tensor) -> Tensor:
        weight = self._by_shape.get(maps.shape)
        if weight is None:
            weight = self._by_shape[maps.shape] = self._ordered_for(maps.shape)
        one, none = [1, 1], [0, 0]
        out = (self._before.scale, self._before.zero_point, torch.uint8)
        made: Tensor = torch.ops.onednn.qconv2d_pointwise(
            *(maps, self._maps.scale, 0, weight, self._scale, self._no_zero_points, self._bias),
            *(one, none, one, 1, *out, "none", [], ""),
        )
        return made

    def _ordered_for(self, shape: torch.Size) -> Tensor:
        """The weight in the layout that oneDNN wants for maps of this shape; `FusedConv` says why."""
        one, none = [1, 1], [0, 0]
        ordered: Tensor = torch.ops.onednn.qconv_prepack(
            self._weight, self._scale, self._maps.scale, 0, one, none, one, 1, list(shape)
        )
        order: Tensor = torch.ops.mkldnn._get_mkldnn_serialized_md(ordered)
        return self._by_order.setdefault(order.numpy().tobytes(), ordered)


def _table(before: Quantisation, after: Quantisation) -> bytes:
    """GELU of each of the 256 codes."""
    codes = torch.arange(256, dtype=torch.uint8)
    return bytes(after.encode(F.gelu(before.decode(codes))).tolist())


def look_up(maps: Tensor, table: bytes) -> Tensor:
    """`table[code]` for each code of `maps` uint8 [N, C, H, W], channels last, as is the result."""
    rows = maps.permute(0, 2, 3, 1).contiguous()
    # Half a nanosecond a code; torch has no look-up by bytes.
    found = torch.frombuffer(bytearray(rows.numpy()).translate(table), dtype=torch.uint8)
    return found.view(rows.shape).permute(0, 3, 1, 2)


@dataclass(frozen=True, slots=True)
class Int8Stage:
    """One stage, from codes to codes.

    maps: the code of what `down` makes.
    inner: of what `second` makes.
    out: of their sum, which is the stage's output.
    """

    down: Int8Conv
    first: Int8Conv
    second: Int8Conv
    maps: Quantisation
    inner: Quantisation
    out: Quantisation

    def __call__(self, maps: Tensor) -> Tensor:
        maps = self.down(maps)
        inner = self.second(self.first(maps))
        return self.out.sum(maps, self.maps, inner, self.inner)


class Int8Stages:
    """The stem and all stages: images fp32 [N, 3, S, S] to the last stage's maps, fp32.

    images: the code of the images.
    """

    def __init__(self, images: Quantisation, stem: Int8Conv, stages: Sequence[Int8Stage]) -> None:
        self._images, self._stem, self._stages = images, stem, list(stages)

    def __call__(self, images: Tensor) -> Tensor:
        maps = self._stem(self._images.encode(images))
        for stage in self._stages:
            maps = stage(maps)
        return self._stages[-1].out.decode(maps)
