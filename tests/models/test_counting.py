"""Analytic parameter and MAC counts against torch's own counter, where that counts right."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from fewshard_models import (
    FewshardImageConfig,
    FewshardImageForImageClassification,
    FewshardTextConfig,
    FewshardTextForSequenceClassification,
)
from fewshard_models.counting import count_macs, count_parameters

SIZES = {
    "vocab_size": 50,
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 40,
}


def counted_macs(run) -> int:
    with FlopCounterMode(display=False) as counter, torch.inference_mode():
        run()
    return counter.get_total_flops() // 2


@pytest.mark.parametrize("fields", [{}, {"embedding_size": 8, "pooler_act": None}, {"head_dim": 4}])
def test_dense_text_macs(fields):
    config = FewshardTextConfig(**SIZES, **fields)
    model = FewshardTextForSequenceClassification(config).eval()
    tokens = 25
    counted = counted_macs(lambda: model(torch.ones(1, tokens, dtype=torch.int64)))
    # The counter sees no attention on a CPU: 2 * tokens^2 * width MACs a layer.
    attention = 3 * 2 * tokens**2 * config.attention_size
    assert count_macs(config, tokens) == counted + attention


@pytest.mark.parametrize("top_k", [1, 2])
def test_moe_text_macs_and_active_parameters(top_k):
    dense = FewshardTextConfig(**SIZES)
    moe = FewshardTextConfig(**SIZES, num_experts=4, num_experts_per_tok=top_k)
    router = 3 * 25 * 32 * 4
    extra_experts = (top_k - 1) * 3 * 25 * 2 * 32 * 40
    assert count_macs(moe) == count_macs(dense) + router + extra_experts
    parameters = count_parameters(FewshardTextForSequenceClassification(moe))
    one_expert = 2 * 32 * 40 + 40 + 32
    assert parameters.total - parameters.active == 3 * (4 - top_k) * one_expert


@pytest.mark.parametrize(
    "fields", [{}, {"routing": "request"}, {"moe_layers": [1], "moe_intermediate_size": 16}]
)
def test_moe_macs_are_those_the_model_runs(fields):
    config = FewshardTextConfig(**SIZES, num_experts=4, **fields)
    model = FewshardTextForSequenceClassification(config).eval()
    counted = counted_macs(lambda: model(torch.randint(1, 50, (1, 25))))
    assert count_macs(config, 25) == counted + 3 * 2 * 25**2 * 32


@pytest.mark.parametrize("fields", [{}, {"stage_channels": [16, 24, 40], "block_channels": [8, 8, 24]}])
def test_image_macs(fields):
    config = FewshardImageConfig(num_labels=10, **fields)
    model = FewshardImageForImageClassification(config).eval()
    assert count_macs(config) == counted_macs(lambda: model(torch.zeros(1, 3, 32, 32)))
    parameters = count_parameters(model)
    assert parameters.total == parameters.active == sum(p.numel() for p in model.parameters())


def test_other_architectures_are_refused():
    from transformers import BertConfig

    with pytest.raises(ValueError, match="not for 'bert'"):
        count_macs(BertConfig())
