"""The tiled weight gradient is the plain one, and is left alone where it does not apply."""

import pytest
import torch

from fewshard_models.image.convolution import Conv3x3, tile, tiles_per_side


def gradients(conv: Conv3x3, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    x = x.clone().requires_grad_()
    conv.zero_grad()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = conv(x)
    (out.float() * torch.linspace(-1, 1, out.numel()).view(out.shape)).sum().backward()
    assert conv.weight.grad is not None
    assert x.grad is not None
    return conv.weight.grad, x.grad


@pytest.mark.parametrize("size", [1, 3, 7])
def test_gradients_are_those_of_a_plain_convolution(size, monkeypatch):
    torch.manual_seed(0)
    conv, x = Conv3x3(5, 6).train(), torch.randn(64, 5, size, size)
    assert tiles_per_side(x) > 1
    tiled = gradients(conv, x)
    monkeypatch.setattr("fewshard_models.image.convolution.MAX_TILED_SIZE", 0)
    for ours, plain in zip(tiled, gradients(conv, x), strict=True):
        torch.testing.assert_close(ours, plain, atol=1e-2 * plain.abs().max().item(), rtol=0)


def test_tiles_need_a_batch_that_divides():
    assert tiles_per_side(torch.zeros(9, 1, 3, 3)) == 3
    assert tiles_per_side(torch.zeros(7, 1, 3, 3)) == 1
    assert tiles_per_side(torch.zeros(64, 1, 15, 15)) == 1


def test_maps_are_kept_apart_by_zeros():
    x = torch.arange(1.0, 17).view(4, 1, 2, 2)
    tiled = tile(x, 2)
    assert tiled.shape == (1, 1, 6, 6)
    assert tiled[0, 0, :, 2].eq(0).all()
    assert tiled[0, 0, 5].eq(0).all()
    torch.testing.assert_close(tiled[0, 0, 3:5, 3:5], x[3, 0])
