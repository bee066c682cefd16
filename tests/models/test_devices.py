import torch

from fewshard_models.devices import subnormals_flushed


def test_subnormals_are_zero_meanwhile_and_not_after():
    with subnormals_flushed():
        assert (torch.full((4,), 1e-38) * 0.1).tolist() == [0.0] * 4
    assert (torch.full((4,), 1e-38) * 0.1).min() > 0
