"""Masks, magnitude pruning and how densities and widths are shared out."""

import pytest
import torch
from torch import nn

from fewshard_models.errors import RecipeError
from fewshard_models.image import FewshardImageConfig, FewshardImageForImageClassification
from fewshard_models.sparsify.allocation import (
    choose_widths,
    erdos_renyi_kernel,
    multiples,
    share_out,
    uniform,
)
from fewshard_models.sparsify.masks import Masks, magnitude_masks, prunable

SHAPES = {"a": (64, 24, 3, 3), "b": (256, 64, 3, 3), "c": (10, 256)}


def sizes(shapes=SHAPES) -> dict[str, int]:
    return {name: torch.empty(shape).numel() for name, shape in shapes.items()}


@pytest.mark.parametrize("density", [0.02, 0.1, 0.35, 0.9])
@pytest.mark.parametrize("allot", [uniform, erdos_renyi_kernel])
def test_densities_keep_the_promised_share(allot, density):
    found = allot(SHAPES, density)
    assert all(0 < value <= 1 for value in found.values())
    kept = sum(found[name] * size for name, size in sizes().items())
    assert kept == pytest.approx(density * sum(sizes().values()))


def test_erk_is_proportional_to_the_sum_of_the_axes():
    found = erdos_renyi_kernel(SHAPES, 0.02)
    assert found["a"] / found["b"] == pytest.approx(
        (64 + 24 + 6) / (64 * 24 * 9) / ((256 + 64 + 6) / (256 * 64 * 9))
    )
    assert erdos_renyi_kernel(SHAPES, 0.9)["c"] == 1.0


@pytest.mark.parametrize("density", [0.0, 1.0, -0.1, 1.5, float("nan")])
def test_a_density_outside_0_and_1_is_refused(density):
    weights = {"a": torch.randn(4, 4)}
    for call in (
        lambda: uniform(SHAPES, density),
        lambda: erdos_renyi_kernel(SHAPES, density),
        lambda: magnitude_masks(weights, density),
    ):
        with pytest.raises(RecipeError, match="between 0 and 1"):
            call()


@pytest.mark.parametrize("total", [7, 50, 99, 149, 150, 500])
def test_places_are_shared_out_exactly(total):
    counts = share_out(total, {"a": 10, "b": 40, "c": 100}, {"a": 3.0, "b": 3.3, "c": 4.1})
    assert sum(counts.values()) == min(total, 150)
    assert all(1 <= counts[name] <= most for name, most in {"a": 10, "b": 40, "c": 100}.items())


def test_an_emptied_layer_is_refused():
    with pytest.raises(RecipeError, match="b would be left without"):
        share_out(2, {"a": 10, "b": 10}, {"a": 100.0, "b": 0.1})
    with pytest.raises(RecipeError, match="mask of b would empty"):
        magnitude_masks({"a": 10 + torch.rand(10, 10), "b": torch.rand(10, 10)}, 0.4)


def test_magnitude_keeps_the_largest_exactly_despite_ties():
    weights = {"a": torch.tensor([[5.0, -4.0], [1.0, 1.0]]), "b": torch.tensor([[1.0, 1.0, -9.0]])}
    masks = magnitude_masks(weights, 3 / 7)
    assert masks["a"].tolist() == [[True, True], [False, False]]
    assert masks["b"].tolist() == [[False, False, True]]
    assert magnitude_masks(weights, 4 / 7).num_kept == 4
    by_layer = magnitude_masks(weights, 0.5, "layer")
    assert [int(by_layer[name].sum()) for name in by_layer] == [2, 2]


def test_masks_fit_out_by_in_weights_and_refuse_others():
    model = nn.Sequential(nn.Linear(3, 5), nn.ReLU(), nn.Conv1d(5, 5, 1))
    masks = magnitude_masks(prunable(model), 0.5)
    assert list(masks) == ["0.weight"]
    assert masks["0.weight"].shape == (5, 3)
    masks.apply(model)
    assert int(model[0].weight.count_nonzero()) == masks.num_kept == 8
    assert masks.density == pytest.approx(8 / 15)
    before = model[0].weight.clone()
    with pytest.raises(RecipeError, match=r"is \(3, 5\), its weight \(5, 3\)"):
        Masks({"0.weight": torch.ones(3, 5, dtype=torch.bool)}).apply(model)
    with pytest.raises(RecipeError, match="does not have"):
        Masks({"9.weight": torch.ones(3, 5, dtype=torch.bool)}).apply(model)
    with pytest.raises(RecipeError, match="masks are bool"):
        Masks({"0.weight": torch.ones(5, 3)})
    assert torch.equal(model[0].weight, before)


def test_stem_and_head_are_spared():
    names = list(prunable(FewshardImageForImageClassification(FewshardImageConfig())))
    assert len(names) == 9
    assert all(name.startswith("stages.") for name in names)
    with pytest.raises(RecipeError, match="no linear or convolution"):
        prunable(nn.LayerNorm(3))


def test_widths_give_up_what_loses_least_for_its_cost():
    salience = {"a": [1.0, 9.0, 9.0, 1.0], "b": [2.0] * 4}
    candidates = {name: multiples(4, 2) for name in salience}
    cost = {"a": 1.0, "b": 4.0}

    def cost_of(widths):
        return sum(cost[name] * width for name, width in widths.items())

    assert choose_widths(salience, candidates, cost_of, 20.0) == {"a": 4, "b": 4}
    assert choose_widths(salience, candidates, cost_of, 12.0) == {"a": 4, "b": 2}
    assert choose_widths(salience, candidates, cost_of, 11.0) == {"a": 2, "b": 2}
    with pytest.raises(RecipeError, match="narrowest considered cost 10"):
        choose_widths(salience, candidates, cost_of, 3.0)


def test_relative_worth_needs_no_common_scale():
    salience = {"a": [1000.0, 1000.0, 1.0, 1.0], "b": [0.1] * 4}
    candidates = {name: multiples(4, 1) for name in salience}

    def cost_of(widths):
        return float(sum(widths.values()))

    assert choose_widths(salience, candidates, cost_of, 5.0) == {"a": 4, "b": 1}
    assert choose_widths(salience, candidates, cost_of, 5.0, relative=True) == {"a": 2, "b": 3}


def test_a_step_that_saves_no_time_is_not_taken():
    times = {4: 1.0, 3: 1.2, 2: 0.5}
    widths = choose_widths({"a": [1.0] * 4}, {"a": [2, 3, 4]}, lambda widths: times[widths["a"]], 1.0)
    assert widths == {"a": 4}
    assert choose_widths({"a": [1.0] * 4}, {"a": [2, 3, 4]}, lambda w: times[w["a"]], 0.9) == {"a": 2}
    with pytest.raises(RecipeError, match="no widths reach"):
        choose_widths({"a": [1.0] * 4}, {"a": [3, 4]}, lambda widths: times[widths["a"]], 0.9)
