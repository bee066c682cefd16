"""The CNN's convolutions for a CPU: a faster weight gradient for training, and a fused form for inference.

`Conv3x3`: oneDNN's bf16 weight gradient slows down as maps get smaller; 3x3 maps run at a tenth of the
forward pass's rate (docs/log.md). Tiling them into a few larger maps, separated by zeros, avoids that.

`FusedConv`: convolution, batch norm and GELU as one oneDNN operation, made by `prepare_for_inference`.
Separate norm and GELU cost memory traffic in proportion to the channels, products in proportion to their
square: unfused, they consume what cutting channels saves (docs/log.md).
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

MAX_TILED_SIZE = 7
_TILE_SIZE = 16


class Conv3x3(nn.Conv2d):
    """3x3 convolution of [N, I, H, W] to [N, O, H, W], padded by one, without bias."""

    def __init__(self, channels_in: int, channels_out: int) -> None:
        super().__init__(channels_in, channels_out, 3, padding=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        if self.training and x.device.type == "cpu" and _in_bf16() and tiles_per_side(x) > 1:
            out: Tensor = _TiledGradient.apply(x.bfloat16(), self.weight.bfloat16())
            return out
        return super().forward(x)


def _in_bf16() -> bool:
    return torch.is_autocast_enabled("cpu") and torch.get_autocast_dtype("cpu") == torch.bfloat16


def tiles_per_side(x: Tensor) -> int:
    """Maps per side of a tile; 1 if tiling gains nothing or the batch is not divisible."""
    num_images, size = x.shape[0], max(x.shape[2:])
    if size > MAX_TILED_SIZE:
        return 1
    count = _TILE_SIZE // (size + 1)
    while num_images % count**2:
        count -= 1
    return count


def tile(x: Tensor, count: int) -> Tensor:
    """[N, C, H, W] to [N / count^2, C, count * (H + 1), count * (W + 1)], with zeros below and right of each
    map."""
    n, channels, height, width = x.shape
    tiled = x.new_zeros(n // count**2, count, height + 1, count, width + 1, channels)
    maps = x.permute(0, 2, 3, 1).reshape(n // count**2, count, count, height, width, channels)
    tiled[:, :, :height, :, :width] = maps.permute(0, 1, 3, 2, 4, 5)
    return tiled.view(n // count**2, count * (height + 1), count * (width + 1), channels).permute(0, 3, 1, 2)


class _TiledGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        return F.conv2d(x, weight, padding=1)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None]:
        x, weight = ctx.saved_tensors
        to_x = _gradients(gradient, x, weight, [True, False, False])[0] if ctx.needs_input_grad[0] else None
        if not ctx.needs_input_grad[1]:
            return to_x, None
        count = tiles_per_side(x)
        return to_x, _gradients(tile(gradient, count), tile(x, count), weight, [False, True, False])[1]


def _gradients(gradient: Tensor, x: Tensor, weight: Tensor, wanted: list[bool]) -> tuple[Tensor, ...]:
    one = [1, 1]
    found: tuple[Tensor, ...] = torch.ops.aten.convolution_backward(
        gradient, x, weight, None, one, one, one, False, [0, 0], 1, wanted
    )
    return found


def padded_batch(num_images: int) -> int:
    """`num_images` rounded up to one of eight sizes per octave.

    oneDNN recompiles each layer for a number of images that it has not seen lately, which can take longer
    than the images.
    """
    step = 1 << max(0, (num_images - 1).bit_length() - 4)
    return -(-num_images // step) * step


def can_fuse(conv: nn.Conv2d) -> bool:
    return conv.weight.device.type == "cpu" and torch.backends.mkldnn.is_available()


class FusedConv:
    """GELU(norm(conv)) of [N, I, H, W] to [N, O, H', W']; with `pool`, 2x2 max-pooling before the norm.

    `norm` (or None) is folded into the convolution in fp32. The weight layout that oneDNN wants depends on
    the input's shape, and reordering at each call can take 100 times as long as the convolution
    (docs/log.md). Each layout is therefore cached; all batches together need two or three.
    """

    def __init__(self, conv: nn.Conv2d, norm: nn.BatchNorm2d | None, pool: bool) -> None:
        weight, bias = folded(conv, norm)
        self.pool, self.bias = pool, bias.to(conv.weight.dtype)
        self.weight = weight.to(conv.weight.dtype).contiguous(memory_format=torch.channels_last)
        self._geometry = (_pair(conv.padding), _pair(conv.stride), [1, 1], 1)
        self._by_shape: dict[torch.Size, Tensor] = {}
        self._by_order: dict[bytes, Tensor] = {}

    def __call__(self, x: Tensor) -> Tensor:
        weight = self._by_shape.get(x.shape)
        if weight is None:
            weight = self._by_shape[x.shape] = self._ordered_for(x.shape)
        activation = "none" if self.pool else "gelu"
        out: Tensor = torch.ops.mkldnn._convolution_pointwise(
            x, weight, self.bias, *self._geometry, activation, [], "none"
        )
        return F.gelu(max_pool(out)) if self.pool else out

    def _ordered_for(self, shape: torch.Size) -> Tensor:
        ordered: Tensor = torch.ops.mkldnn._reorder_convolution_weight(
            self.weight, *self._geometry, list(shape)
        )
        order: Tensor = torch.ops.mkldnn._get_mkldnn_serialized_md(ordered)
        return self._by_order.setdefault(order.numpy().tobytes(), ordered)


def max_pool(x: Tensor) -> Tensor:
    """2x2 max-pooling like `F.max_pool2d(x, 2)`; twice as fast for channels-last maps on a CPU."""
    height, width = (size // 2 * 2 for size in x.shape[2:])
    rows = torch.maximum(x[:, :, 0:height:2, :width], x[:, :, 1:height:2, :width])
    return torch.maximum(rows[..., 0::2], rows[..., 1::2])


def folded(conv: nn.Conv2d, norm: nn.BatchNorm2d | None) -> tuple[Tensor, Tensor]:
    """fp32 weight [O, I, kh, kw] and bias [O] of the convolution combined with its norm in eval mode."""
    weight = conv.weight.detach().float()
    bias = torch.zeros(conv.out_channels) if conv.bias is None else conv.bias.detach().float()
    if norm is None:
        return weight, bias
    assert norm.running_mean is not None
    assert norm.running_var is not None
    scale = norm.weight.detach().float() / (norm.running_var.float() + norm.eps).sqrt()
    return weight * scale[:, None, None, None], (
        bias - norm.running_mean.float()
    ) * scale + norm.bias.detach().float()


def _pair(value: tuple[int, ...] | str) -> list[int]:
    assert not isinstance(value, str)
    return list(value)
