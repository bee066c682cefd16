"""Experts out of a dense model: what each takes, where the router starts, and what is refused."""

import pytest
import torch

from fewshard_models import FewshardTextConfig, FewshardTextForSequenceClassification
from fewshard_models.counting import count_macs, count_parameters
from fewshard_models.errors import RecipeError
from fewshard_models.recipes.student import shrink
from fewshard_models.recipes.tiers import BERT_BASE, PAPER_MOE
from fewshard_models.sparsify.moe import split_into_experts, upcycle
from fewshard_models.sparsify.observers import ffn_units, importance
from fewshard_models.text import pack

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def dense() -> FewshardTextForSequenceClassification:
    torch.manual_seed(1)
    config = FewshardTextConfig(
        vocab_size=60, hidden_size=32, num_hidden_layers=3, num_attention_heads=4, intermediate_size=40
    )
    model = FewshardTextForSequenceClassification(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.15)
    return model


@pytest.fixture(scope="module")
def sample() -> list[list[int]]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randint(1, 60, (5 + row % 9,), generator=generator).tolist() for row in range(60)]


def logits_of(model, items):
    with torch.inference_mode():
        return model.eval().forward_packed(pack(items, None, CPU)).logits


def units_of(moe_layer, dense_layer, expert: int) -> set[int]:
    """Which of the dense units an expert holds."""
    same = (moe_layer.ffn.w1[expert][:, None] == dense_layer.ffn.up.weight[None]).all(dim=2)
    assert (same.sum(dim=1) == 1).all()
    return set(same.int().argmax(dim=1).tolist())


@pytest.mark.parametrize("routing", ["token", "request"])
def test_every_expert_holds_the_units_that_matter_to_all(dense, sample, routing):
    student = split_into_experts(dense, 3, 16, sample, num_shared=10, routing=routing)
    units = ffn_units(dense, sample)
    for index in range(3):
        held = [units_of(student.layers[index], dense.layers[index], expert) for expert in range(3)]
        matter = importance(units[index], dense.layers[index].ffn.down.weight)
        assert all(set(matter.topk(10).indices.tolist()) <= each for each in held)
        assert len(set.union(*held)) > 16
    config = student.config
    assert (config.expert_size, config.expert_layers, config.routing) == (16, [0, 1, 2], routing)


def test_experts_of_all_units_answer_as_the_dense_model(dense, sample):
    student = split_into_experts(dense, 3, 40, sample, norm_topk_prob=True)
    torch.testing.assert_close(logits_of(student, sample), logits_of(dense, sample), atol=1e-5, rtol=1e-5)


def test_layers_without_experts_are_those_of_the_rest(dense, sample):
    rest = shrink(dense, sample, intermediate_size=24)
    student = split_into_experts(dense, 2, 30, sample, rest=rest, moe_layers=[1])
    assert student.config.expert_layers == [1]
    assert student.layers[1].ffn.w1.shape == (2, 30, 32)
    for index in (0, 2):
        assert torch.equal(student.layers[index].ffn.up.weight, rest.layers[index].ffn.up.weight)
    assert len(student.forward_packed(pack(sample, None, CPU)).moe_stats) == 1


@pytest.mark.parametrize(("size", "shared"), [(41, 0), (16, 17), (16, -1)])
def test_sizes_that_do_not_fit_are_refused(dense, sample, size, shared):
    with pytest.raises(RecipeError, match="cannot be taken from 40"):
        split_into_experts(dense, 3, size, sample, num_shared=shared)


def test_upcycled_model_starts_as_the_dense_one(dense, sample):
    student = upcycle(dense, 4, norm_topk_prob=True)
    torch.testing.assert_close(logits_of(student, sample), logits_of(dense, sample), atol=1e-5, rtol=1e-5)
    assert student.layers[0].ffn.router.std() > 0


def test_the_papers_row():
    student = PAPER_MOE.student
    config = FewshardTextConfig(
        **BERT_BASE
        | {
            "num_hidden_layers": len(student.layers),
            "num_experts": student.experts.count,
            "moe_intermediate_size": student.experts.size,
        }
    )
    with torch.device("meta"):
        parameters = count_parameters(FewshardTextForSequenceClassification(config))
    assert 480e6 < parameters.total < 495e6
    assert count_macs(config) == pytest.approx(0.9e9, rel=0.03)
