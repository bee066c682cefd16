"""The text encoder with packed linear layers and rounded rows against the same encoder plain, in bf16."""

import pytest
import torch

from fewshard_kernels import onednn_multiplies, rounded
from fewshard_models.text import FewshardTextConfig, FewshardTextForSequenceClassification, pack
from fewshard_models.text.layers import Linear

CPU = torch.device("cpu")
needs_bf16 = pytest.mark.skipif(not onednn_multiplies(torch.bfloat16), reason="oneDNN has no bf16 here")


def network(dtype=torch.bfloat16, **fields) -> FewshardTextForSequenceClassification:
    torch.manual_seed(0)
    config = FewshardTextConfig(
        vocab_size=100,
        hidden_size=64,
        num_hidden_layers=3,
        num_attention_heads=4,
        intermediate_size=96,
        initializer_range=0.2,
        **fields,
    )
    model = FewshardTextForSequenceClassification(config).eval()
    model.embeddings.to(dtype)
    for layer in model.layers:
        layer.to(dtype)
        if config.num_experts and hasattr(layer.ffn, "router"):
            layer.ffn.router.data = layer.ffn.router.data.float()
    return model


def items(*lengths: int) -> list[list[int]]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randint(100, (length,), generator=generator).tolist() for length in lengths]


@needs_bf16
@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"hidden_act": "relu", "embedding_size": 24},
        {"hidden_act": "silu"},
        # All experts for every row, so that rounding turns no choice.
        {"num_experts": 3, "num_experts_per_tok": 3, "pooling": "mean"},
        {"num_experts": 3, "num_experts_per_tok": 3, "routing": "request", "moe_layers": [1]},
    ],
    ids=["gelu", "relu and a factorised vocabulary", "silu", "experts", "experts by request"],
)
@pytest.mark.parametrize("lengths", [(5,), (3, 7, 7, 20), tuple(range(2, 60))])
def test_logits_and_statistics_are_those_of_the_plain_encoder(fields, lengths):
    plain, served = network(**fields), network(**fields)
    served.prepare_for_inference()
    packed = pack(items(*lengths), None, CPU)
    with torch.inference_mode():
        expected, out = plain.forward_packed(packed), served.forward_packed(packed)
    torch.testing.assert_close(out.logits, expected.logits, atol=8e-2, rtol=0)
    assert [len(hidden) for hidden in out.hidden_states] == [sum(lengths)] * 4
    assert all(int(stats.expert_rows.sum()) == 3 * sum(lengths) for stats in out.moe_stats)


@needs_bf16
def test_products_see_few_different_numbers_of_rows(monkeypatch):
    served = network()
    served.prepare_for_inference()
    seen = set()
    first = served.layers[0].attention.qkv
    plain_call = type(first.fused).__call__
    monkeypatch.setattr(
        type(first.fused), "__call__", lambda self, x: seen.add(len(x)) or plain_call(self, x)
    )
    with torch.inference_mode():
        for length in range(33, 97):
            served.forward_packed(pack(items(length), None, CPU))
    assert seen == {rounded(length) for length in range(33, 97)} == {64, 96}


@needs_bf16
def test_training_and_casts_drop_the_packed_weights():
    model = network()
    names = set(model.state_dict())
    model.prepare_for_inference()
    linears = [module for module in model.modules() if isinstance(module, Linear)]
    assert len(linears) == 12
    assert all(linear.fused is not None for linear in linears)
    assert set(model.state_dict()) == names
    assert all(linear.fused is None for module in [model.train()] for linear in linears)
    model.prepare_for_inference()
    model.float()
    assert all(linear.fused is None for linear in linears)


def test_fp32_weights_stay_as_they_are():
    model = network(torch.float32)
    model.prepare_for_inference()
    assert all(module.fused is None for module in model.modules() if isinstance(module, Linear))
    packed = pack(items(9, 4), None, CPU)
    with torch.inference_mode():
        torch.testing.assert_close(
            model.forward_packed(packed).logits, network(torch.float32).forward_packed(packed).logits
        )
