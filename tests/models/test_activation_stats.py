"""What is seen of single texts is what the layers did, alone or in a batch, dense or MoE."""

import numpy as np
import pytest
import torch

from fewshard_models.evaluation.metrics import auroc, auroc_with_interval
from fewshard_models.text import FewshardTextConfig, FewshardTextForSequenceClassification, pack
from fewshard_models.text.observers import NEAR_ZERO, signs_of

TEXTS = [[3, 9, 4], [7], [5, 6, 7, 8, 9, 10, 11], [2, 2]]


def network(**changes):
    torch.manual_seed(0)
    settings = {
        "vocab_size": 50, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4,
        "intermediate_size": 40, "max_position_embeddings": 16, "initializer_range": 0.3, "pooling": "mean",
        "pooler_act": None, "num_experts": 0,
    }  # fmt: skip
    return FewshardTextForSequenceClassification(FewshardTextConfig(**{**settings, **changes})).eval()


def moe(**changes):
    return network(num_experts=4, moe_intermediate_size=24, moe_layers=[1], **changes)


@pytest.mark.parametrize("model", [network(), moe(), moe(routing="request"), moe(num_experts_per_tok=2)])
def test_a_text_looks_the_same_alone_and_beside_others(model):
    together = signs_of(model, TEXTS)
    for row, text in enumerate(TEXTS):
        alone = signs_of(model, [text])
        assert alone.logits[0] == pytest.approx(together.logits[row], abs=1e-4)
        assert alone.sparsity[0] == pytest.approx(together.sparsity[row], abs=1e-5)
        assert alone.entropy[0] == pytest.approx(together.entropy[row], abs=1e-4)
        assert alone.experts[0].tolist() == together.experts[row].tolist()


def test_the_pass_is_the_models_own_and_leaves_no_hook():
    model = moe()
    signs = signs_of(model, TEXTS)
    with torch.inference_mode():
        out = model.forward_packed(pack(TEXTS, None, torch.device("cpu")))
    assert signs.logits == pytest.approx(out.logits.numpy(), abs=1e-6)
    assert not any(module._forward_pre_hooks for module in model.modules())


@pytest.mark.parametrize("model", [moe(), moe(num_experts_per_tok=2), moe(routing="request")])
def test_experts_are_those_that_the_layer_counts(model):
    signs = signs_of(model, TEXTS)
    with torch.inference_mode():
        (stats,) = model.forward_packed(pack(TEXTS, None, torch.device("cpu"))).moe_stats
    assert signs.experts[:, 0].sum(axis=0).tolist() == stats.expert_rows.tolist()
    if model.config.routing != "request":
        total = (signs.entropy[:, 0] * [len(text) for text in TEXTS]).sum()
        assert total == pytest.approx(float(stats.entropy), rel=1e-4)


def test_dense_units_near_zero_are_counted():
    model = network(num_hidden_layers=1)
    seen = []
    model.layers[0].ffn.down.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    signs = signs_of(model, [TEXTS[0]])
    assert signs.sparsity.tolist() == [[pytest.approx(float((seen[0].abs() <= NEAR_ZERO).float().mean()))]]
    assert signs.entropy.shape == (1, 0)


def test_auroc_is_the_chance_to_be_above():
    rng = np.random.default_rng(0)
    inside, outside = rng.integers(0, 9, 40).astype(float), rng.integers(2, 11, 30).astype(float)
    pairs = np.sign(outside[:, None] - inside[None]) / 2 + 0.5
    assert auroc(inside, outside) == pytest.approx(pairs.mean())
    assert auroc(inside, inside) == pytest.approx(0.5)
    assert auroc(np.zeros(5), np.ones(3)) == 1.0
    found = auroc_with_interval(inside, outside, num_draws=200)
    assert found.low < found.value < found.high
