"""The experts that a watched network tells are those that its expert layers count."""

import pytest
import torch

from fewshard_models import FewshardTextConfig, FewshardTextForSequenceClassification
from fewshard_models.text import pack, watched_experts

CPU = torch.device("cpu")
ITEMS = [[5, 6, 7], [8, 9, 10, 11, 12], [13, 14]]


def make_model(dtype: torch.dtype, **fields) -> FewshardTextForSequenceClassification:
    torch.manual_seed(3)
    config = FewshardTextConfig(
        vocab_size=50,
        hidden_size=32,
        num_hidden_layers=3,
        num_attention_heads=4,
        intermediate_size=24,
        moe_layers=[0, 2],
        num_experts=4,
        **fields,
    )
    model = FewshardTextForSequenceClassification(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.3)
    model = model.to(dtype)
    for name, parameter in model.named_parameters():
        if any(part in name for part in ("router", "classifier", "pooler")):
            parameter.data = parameter.data.float()
    model.prepare_for_inference()
    return model


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("routing", ["token", "request"])
@pytest.mark.parametrize("top_k", [1, 2])
def test_the_choices_are_those_that_were_counted(dtype, routing, top_k):
    model = make_model(dtype, routing=routing, num_experts_per_tok=top_k)
    packed = pack(ITEMS, None, CPU)
    with torch.inference_mode(), watched_experts(model) as chosen:
        out = model.forward_packed(packed)
    assert [tuple(layer.shape) for layer in chosen] == [(10, top_k)] * 2
    for layer, stats in zip(chosen, out.moe_stats, strict=True):
        assert torch.bincount(layer.flatten(), minlength=4).tolist() == stats.expert_rows.tolist()
    if routing == "request":
        first = chosen[0][:3]
        assert (first == first[0]).all()


def test_watching_changes_no_answer_and_ends():
    model, packed = make_model(torch.float32), pack(ITEMS, None, CPU)
    with torch.inference_mode():
        plain = model.forward_packed(packed).logits
        with watched_experts(model) as chosen:
            watched = model.forward_packed(packed).logits
        model.forward_packed(packed)
    assert torch.equal(plain, watched)
    assert len(chosen) == 2
