"""CNNs cut by magnitude, and the MACs of masked and whole ones."""

import pytest
import torch

from fewshard_models.counting import count_macs
from fewshard_models.errors import RecipeError
from fewshard_models.evaluation.costs import cost_of, nonzero_macs
from fewshard_models.image import FewshardImageConfig
from fewshard_models.image import FewshardImageForImageClassification as Cnn
from fewshard_models.recipes.width import narrowed, widened


def small() -> Cnn:
    torch.manual_seed(0)
    config = FewshardImageConfig(
        stem_channels=8, stage_channels=[16, 24, 32], block_channels=[16, 16, 24], num_labels=10
    )
    return Cnn(config).eval()


def test_widths_are_multiples_of_eight():
    config = widened(0.3)
    assert config.stage_channels == [16, 56, 80]
    assert config.block_channels == [16, 40, 40]


def test_channels_of_small_filters_go_and_the_logits_stay():
    model = small()
    with torch.no_grad():
        for stage in model.stages:
            # All but eight channels of every layer carry nothing.
            for layer in (stage.down, *stage.block):
                layer.conv.weight[:-8] = 0
                layer.norm.bias[:-8] = 0
    images = torch.randn(2, 3, 32, 32)
    cut = narrowed(model, 0.4)
    assert count_macs(cut.config) <= 0.4 * count_macs(model.config)
    torch.testing.assert_close(cut(images).logits, model(images).logits)


@pytest.mark.parametrize("share", [0.0, 1.0, -1, 1.5])
def test_shares_outside_one_are_refused(share):
    with pytest.raises(RecipeError, match="between 0 and 1"):
        narrowed(small(), share)


def test_a_share_that_no_width_reaches_is_refused():
    with pytest.raises(RecipeError, match="keep more"):
        narrowed(small(), 0.01)


def test_a_prepared_network_costs_what_it_cost_before():
    model = small().eval()
    before = cost_of(model)
    model.prepare_for_inference()
    with torch.no_grad():
        assert model.stages[0].down.usable is not None
    assert cost_of(model) == before


def test_macs_of_a_mask_leave_out_zero_weights():
    model = small()
    assert nonzero_macs(model) == count_macs(model.config)
    whole = cost_of(model)
    assert not whole.is_masked
    assert whole.macs_counted == whole.macs
    conv = model.stages[1].block[0].conv
    with torch.no_grad():
        conv.weight[:8] = 0
    masked = cost_of(model)
    # Its map is 7x7: half of 16 outputs, each of 24 inputs and nine places.
    assert masked.macs - masked.macs_nonzero == 7 * 7 * 8 * 24 * 9
    assert masked.is_masked
    assert masked.macs_counted == masked.macs_nonzero
    assert masked.parameters_nonzero == whole.parameters_nonzero - 8 * 24 * 9
