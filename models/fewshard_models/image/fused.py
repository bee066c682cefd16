"""Convolution, batch norm and GELU as one oneDNN operation on a CPU; made by `prepare_for_inference`.

Norm and GELU by themselves cost memory traffic in proportion to the channels, where products cost their
square: left apart they eat what cutting channels saves (docs/log.md).
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def padded_batch(num_images: int) -> int:
    """`num_images` rounded up to one of eight sizes an octave: oneDNN compiles each layer anew for a number
    of images that it has not met lately, which can take longer than the images."""
    step = 1 << max(0, (num_images - 1).bit_length() - 4)
    return -(-num_images // step) * step


def can_fuse(conv: nn.Conv2d) -> bool:
    return conv.weight.device.type == "cpu" and torch.backends.mkldnn.is_available()


class FusedConv:
    """[N, I, H, W] to GELU(norm(conv)) [N, O, H', W'], with 2x2 max-pooling before the norm where `pool`.

    `norm` is folded into the convolution in fp32; None for none. Which order of the weights oneDNN wants
    depends on the input's shape, and to turn one order into another at each call can take 100 times as long
    as the convolution (docs/log.md): each order met is kept. There are two or three for all batches.
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
    """2x2 max-pooling, as `F.max_pool2d(x, 2)`; twice as fast for channels-last maps on a CPU."""
    height, width = (size // 2 * 2 for size in x.shape[2:])
    rows = torch.maximum(x[:, :, 0:height:2, :width], x[:, :, 1:height:2, :width])
    return torch.maximum(rows[..., 0::2], rows[..., 1::2])


def folded(conv: nn.Conv2d, norm: nn.BatchNorm2d | None) -> tuple[Tensor, Tensor]:
    """fp32 weight [O, I, kh, kw] and bias [O] of the convolution with its norm in eval mode."""
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
