"""The CNN's 3x3 convolution: `nn.Conv2d` whose bf16 weight gradient on a CPU is faster for small maps.

oneDNN's bf16 weight gradient slows down as maps get smaller: 3x3 maps run at a tenth of the forward pass's
rate (docs/log.md). Laid out as a few larger maps with a line of zeros between them, they do not.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

MAX_TILED_SIZE = 7
_TILE_SIZE = 16


class Conv3x3(nn.Conv2d):
    """[N, I, H, W] to [N, O, H, W], padded by one, no bias."""

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
    """How many maps go side by side, both ways; 1 where that gains nothing or the batch does not divide."""
    num_images, size = x.shape[0], max(x.shape[2:])
    if size > MAX_TILED_SIZE:
        return 1
    count = _TILE_SIZE // (size + 1)
    while num_images % count**2:
        count -= 1
    return count


def tile(x: Tensor, count: int) -> Tensor:
    """[N, C, H, W] to [N / count^2, C, count * (H + 1), count * (W + 1)], zeros below and right of each."""
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
