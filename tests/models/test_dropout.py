"""Dropout from bytes: the promised share, an exact expectation, one mask for both passes."""

import pytest
import torch

from fewshard_models.text.layers import Dropout, random_bytes


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("p", [0.1, 0.5])
def test_share_and_expectation(p, dtype):
    torch.manual_seed(0)
    out = Dropout(p)(torch.ones(999, 101, dtype=dtype))
    assert out.dtype == dtype
    assert (out == 0).float().mean().item() == pytest.approx(p, abs=0.005)
    assert out.float().mean().item() == pytest.approx(1.0, abs=0.01)


def test_gradient_has_the_same_mask():
    hidden = torch.ones(50, 7, requires_grad=True)
    out = Dropout(0.3)(hidden)
    out.sum().backward()
    assert torch.equal(hidden.grad, out.detach())


def test_same_seed_same_mask_and_none_in_eval_mode():
    layer, hidden = Dropout(0.1), torch.randn(40, 9)
    torch.manual_seed(3)
    first = layer(hidden)
    torch.manual_seed(3)
    assert torch.equal(layer(hidden), first)
    assert torch.equal(layer.eval()(hidden), hidden)


def test_bytes_are_uniform():
    torch.manual_seed(0)
    counts = torch.bincount(random_bytes(256 * 1000).long(), minlength=256)
    assert counts.min() > 800
    assert counts.max() < 1200
