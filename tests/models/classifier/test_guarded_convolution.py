"""Convolutions in bf16 on a CPU answer as in fp32, whatever torch makes of them."""

import pytest
import torch
from torch import nn

from fewshard_models.classifier import convolution
from fewshard_models.classifier.convolution import guard_convolutions, is_right

CASES = [
    # channels, kernel, stride, padding, height, width; torch 2.13 answers the first six wrongly with AMX
    (8, 8, 8, 0, 8, 8),
    (24, 4, 4, 0, 16, 16),
    (16, 12, 12, 0, 56, 56),
    (16, 5, 2, 1, 28, 4),
    (40, 3, 2, 0, 56, 4),
    (10, 2, 2, 1, 16, 1),
    (3, 16, 16, 0, 64, 64),
    (64, 3, 1, 1, 14, 14),
    (64, 1, 1, 0, 7, 7),
]


@pytest.mark.parametrize("case", CASES)
def test_bf16_answers_as_fp32(case):
    channels, kernel, stride, padding, height, width = case
    torch.manual_seed(0)
    module = nn.Conv2d(channels, 16, kernel, stride, padding).bfloat16()
    images = torch.randn(2, channels, height, width).bfloat16()
    with torch.inference_mode():
        right = nn.functional.conv2d(
            images.float(), module.weight.float(), module.bias.float(), stride, padding
        )
        guard_convolutions(module)
        for layout in (torch.contiguous_format, torch.channels_last):
            found = module(images.to(memory_format=layout))
            assert found.dtype == torch.bfloat16
            torch.testing.assert_close(found.float(), right, atol=0.05, rtol=0.02)


def test_only_doubtful_convolutions_leave_bf16(monkeypatch):
    doubtful = [
        not is_right(nn.Conv2d(c, 16, k, s, p), torch.empty(1, c, h, w)) for c, k, s, p, h, w in CASES
    ]
    assert doubtful == [True] * 6 + [False] * 3
    monkeypatch.setattr(convolution, "functional_call", lambda *given: pytest.fail("it left bf16"))
    module = nn.Conv2d(64, 16, 3).bfloat16()
    guard_convolutions(module)
    assert module(torch.zeros(1, 64, 9, 9).bfloat16()).dtype == torch.bfloat16


def test_a_subclass_with_weights_of_its_own_making_is_guarded():
    class Doubled(nn.Conv2d):
        def forward(self, images):
            return nn.functional.conv2d(images, self.weight * 2, None, self.stride)

    torch.manual_seed(0)
    module = Doubled(24, 8, 4, 4).bfloat16()
    images = torch.randn(2, 24, 16, 16).bfloat16()
    with torch.inference_mode():
        right = nn.functional.conv2d(images.float(), module.weight.float() * 2, None, 4)
        guard_convolutions(module)
        torch.testing.assert_close(module(images).float(), right, atol=0.05, rtol=0.02)
