"""The CNN with fused convolutions against the same network plain, and when fusion is dropped."""

import copy

import pytest
import torch

from fewshard_models.image import FewshardImageConfig, FewshardImageForImageClassification
from fewshard_models.image.convolution import max_pool, padded_batch


def network(seed: int = 0) -> FewshardImageForImageClassification:
    """With norms that have seen data, so that folding them changes every weight."""
    torch.manual_seed(seed)
    config = FewshardImageConfig(stage_channels=(8, 24), block_channels=(16, 8), num_labels=5)
    model = FewshardImageForImageClassification(config)
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.uniform_(module.weight, 0.5, 1.5)
            torch.nn.init.normal_(module.bias, std=0.2)
            torch.nn.init.normal_(module.running_mean, std=0.2)
            torch.nn.init.uniform_(module.running_var, 0.5, 2.0)
    return model.to(memory_format=torch.channels_last).eval()


def num_fused(model: torch.nn.Module) -> int:
    return sum(getattr(module, "fused", None) is not None for module in model.modules())


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 6e-2)])
@pytest.mark.parametrize("batch", [1, 3, 33, 64])
def test_logits_are_those_of_the_plain_network(dtype, tolerance, batch):
    plain = network()
    pixels = torch.randn(batch, 3, 32, 32).to(memory_format=torch.channels_last)
    served = copy.deepcopy(plain)
    served.stem.to(dtype)
    served.stages.to(dtype)
    served.prepare_for_inference()
    assert num_fused(served) == 7
    with torch.inference_mode():
        torch.testing.assert_close(
            served(pixels.to(dtype)).logits, plain(pixels).logits, atol=tolerance, rtol=0
        )


@pytest.mark.parametrize("num_images", [1, 8, 9, 17, 33, 63, 64, 100, 511])
def test_batches_come_in_few_sizes(num_images):
    padded = padded_batch(num_images)
    assert num_images <= padded < num_images * (1 + 1 / 8)
    assert padded_batch(padded) == padded
    assert len({padded_batch(number) for number in range(num_images, 2 * num_images)}) <= 17


@pytest.mark.parametrize("size", [(6, 8), (7, 5), (2, 3)])
def test_pooling_is_max_pooling(size):
    x = torch.randn(2, 5, *size).to(memory_format=torch.channels_last)
    assert torch.equal(max_pool(x), torch.nn.functional.max_pool2d(x, 2))


def test_another_size_of_image_works_too():
    plain, served = network(), network()
    served.prepare_for_inference()
    pixels = torch.randn(2, 3, 48, 40).to(memory_format=torch.channels_last)
    with torch.inference_mode():
        torch.testing.assert_close(served(pixels).logits, plain(pixels).logits, atol=1e-5, rtol=0)


def test_each_batch_has_its_own_order_of_the_weights_and_few_are_kept():
    plain, served = network(), network()
    served.to(torch.bfloat16).prepare_for_inference()
    served.classifier.float()
    layers = [module.fused for module in served.modules() if getattr(module, "fused", None) is not None]
    with torch.inference_mode():
        for batch in (1, 64, 2, 30, 1, 64):
            pixels = torch.randn(batch, 3, 32, 32).to(memory_format=torch.channels_last)
            torch.testing.assert_close(
                served(pixels.bfloat16()).logits, plain(pixels).logits, atol=6e-2, rtol=0
            )
    assert {len(layer._by_shape) for layer in layers} == {4}
    assert all(1 <= len(layer._by_order) <= 3 for layer in layers)


def test_a_norm_that_turns_a_sign_stays_behind_its_pooling():
    plain = network()
    with torch.no_grad():
        plain.stages[1].down.norm.weight[3] = -1.0
        plain.stages[1].block[0].norm.weight[3] = -1.0
    served = copy.deepcopy(plain)
    served.prepare_for_inference()
    assert served.stages[1].down.fused is None
    assert num_fused(served) == 6
    pixels = torch.randn(4, 3, 32, 32).to(memory_format=torch.channels_last)
    with torch.inference_mode():
        torch.testing.assert_close(served(pixels).logits, plain(pixels).logits, atol=1e-5, rtol=0)


def test_training_and_casts_drop_what_was_fused_and_gradients_pass_it_by():
    model = network()
    names = set(model.state_dict())
    model.prepare_for_inference()
    assert set(model.state_dict()) == names
    model(torch.randn(2, 3, 32, 32), labels=torch.tensor([0, 1])).loss.backward()
    assert model.stages[0].down.conv.weight.grad is not None
    assert num_fused(model.train()) == 0
    model.prepare_for_inference()
    assert num_fused(model.double()) == 0
