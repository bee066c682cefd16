"""MoE models of transformers on `experts_implementation="fewshard"`, and our own encoder packed."""

import copy
from types import SimpleNamespace

import pytest
import torch
import transformers
from torch import nn
from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS, use_experts_implementation

from fewshard_kernels import force_path
from fewshard_models import experts_interface
from fewshard_models.experts_interface import experts_forward, register_experts
from fewshard_models.text import FewshardTextConfig, FewshardTextForSequenceClassification

SIZES = {
    "vocab_size": 99,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "pad_token_id": 0,
    "eos_token_id": 1,
    "initializer_range": 0.2,
}
MODELS = {
    "Mixtral": {"num_local_experts": 4},
    "Qwen2Moe": {
        "num_experts": 6,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 24,
        "shared_expert_intermediate_size": 32,
    },
    "Olmoe": {"num_experts": 8, "num_experts_per_tok": 3},
}


@pytest.fixture
def registered():
    register_experts()
    yield
    ALL_EXPERTS_FUNCTIONS._global_mapping.pop(experts_interface.NAME)


def tiny(name: str, **options):
    torch.manual_seed(0)
    config = getattr(transformers, f"{name}Config")(**SIZES, **MODELS[name], **options)
    head = "SequenceClassification" if name != "Olmoe" else "CausalLM"
    return getattr(transformers, f"{name}For{head}")(config).eval()


@pytest.mark.parametrize("pack", [True, False])
@pytest.mark.parametrize("name", list(MODELS))
def test_logits_equal_those_of_eager(name, pack, registered):
    register_experts(pack=pack)
    model, ids = tiny(name), torch.randint(2, 99, (3, 11))
    with torch.no_grad():
        model.set_experts_implementation("eager")
        expected = model(ids).logits
        model.set_experts_implementation("fewshard")
        logits = model(ids).logits
        again = model(ids).logits
    assert expected.abs().max() > 0.1
    torch.testing.assert_close(logits, expected, atol=1e-4, rtol=0)
    torch.testing.assert_close(again, logits, atol=0, rtol=0)
    packed = [module for module in model.modules() if module in experts_interface._packed]
    assert len(packed) == (2 if pack else 0)


def test_a_model_is_loaded_with_it(tmp_path, registered):
    model, ids = tiny("Qwen2Moe"), torch.randint(2, 99, (2, 5))
    model.save_pretrained(tmp_path)
    loaded = type(model).from_pretrained(tmp_path, experts_implementation="fewshard")
    with torch.no_grad():
        torch.testing.assert_close(loaded(ids).logits, model(ids).logits, atol=1e-4, rtol=0)
    assert any(module in experts_interface._packed for module in loaded.modules())


def test_gradients_equal_those_of_eager(registered):
    model, ids, grads = tiny("Mixtral"), torch.randint(2, 99, (2, 7)), []
    for implementation in ("eager", "fewshard"):
        model.set_experts_implementation(implementation)
        model.zero_grad()
        model(ids).logits.square().sum().backward()
        grads.append({name: parameter.grad.clone() for name, parameter in model.named_parameters()})
    for name, grad in grads[0].items():
        torch.testing.assert_close(grads[1][name], grad, atol=1e-4, rtol=1e-4, msg=name)


class Experts(nn.Module):
    """Experts as transformers' models hold them, without a gate; `forward` is the definition."""

    def __init__(self, config):
        super().__init__()
        rows, columns = (16, 24) if config.transposed else (24, 16)
        self.num_experts = 4
        self.up_proj = nn.Parameter(torch.randn(4, rows, columns) / 4)
        self.down_proj = nn.Parameter(torch.randn(4, columns, rows) / 4)
        self.up_proj_bias = nn.Parameter(torch.randn(4, 24))
        self.down_proj_bias = nn.Parameter(torch.randn(4, 16))
        self.act_fn = transformers.activations.ACT2FN[config.act]


def experts(transposed: bool = False, act: str = "gelu", **options):
    torch.manual_seed(0)
    decorated = use_experts_implementation(
        type("Experts", (Experts,), {}),
        is_transposed=transposed,
        has_bias=True,
        **{"has_gate": False, **options},
    )
    return decorated(SimpleNamespace(transposed=transposed, act=act)).requires_grad_(False)


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("act", ["gelu", "relu", "silu", "gelu_pytorch_tanh"])
def test_plain_experts_in_both_layouts_equal_grouped_mm(transposed, act):
    module, x = experts(transposed, act), torch.randn(9, 16)
    index, weights = torch.randint(0, 4, (9, 2)), torch.rand(9, 2)
    y = experts_forward(module, x, index, weights)
    expected = ALL_EXPERTS_FUNCTIONS["grouped_mm"](module, x, index, weights)
    torch.testing.assert_close(y, expected, atol=1e-5, rtol=1e-5)


def test_experts_of_other_processes_contribute_nothing():
    module, x = experts(), torch.randn(5, 16)
    module._is_expert_parallel = True
    index = torch.tensor([[0, 4], [4, 4], [1, 2], [5, 3], [2, 9]])
    weights = torch.rand(5, 2)
    y = experts_forward(module, x, index, weights)
    local = index < 4
    module._is_expert_parallel = False
    expected = experts_forward(module, x, index.where(local, 0), weights * local)
    torch.testing.assert_close(y, expected)
    assert (y[1] == 0).all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"act": "gelu_fast"}, 'has activation FastGELUActivation.*choose "eager"'),
        ({"has_gate": True, "is_concatenated": False}, "interleaved gate"),
        ({"has_post_expert_norm": True}, "a norm after each expert"),
    ],
)
def test_experts_it_cannot_compute_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        experts_forward(experts(**options), torch.randn(2, 16), torch.zeros(2, 1).long(), torch.ones(2, 1))


def test_a_gate_of_its_own_is_refused():
    module = experts(has_gate=True)
    type(module)._apply_gate = lambda self, projected: projected
    with pytest.raises(ValueError, match="a gate of its own"):
        experts_forward(module, torch.randn(2, 16), torch.zeros(2, 1).long(), torch.ones(2, 1))


def encoder() -> FewshardTextForSequenceClassification:
    torch.manual_seed(0)
    config = FewshardTextConfig(
        vocab_size=60,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=48,
        num_experts=4,
        num_experts_per_tok=2,
        initializer_range=0.2,
    )
    return FewshardTextForSequenceClassification(config).eval()


IDS = torch.arange(1, 41).view(4, 10)


def logits(model: nn.Module) -> torch.Tensor:
    with torch.inference_mode():
        return model(IDS).logits


def prepared() -> FewshardTextForSequenceClassification:
    model = encoder()
    model.prepare_for_inference()
    return model


def packed_layers(model: nn.Module) -> int:
    return sum(layer.ffn.packed._packed is not None for layer in model.layers)


def reference(model: nn.Module) -> torch.Tensor:
    with force_path("reference"), torch.no_grad():
        return model(IDS).logits


def test_the_encoder_packs_when_it_is_asked_to():
    model = encoder()
    expected = logits(model)
    assert packed_layers(model) == 0
    model.train()
    model.prepare_for_inference()
    assert not model.training
    assert packed_layers(model) == 2
    torch.testing.assert_close(logits(model), expected, atol=1e-4, rtol=0)


def test_a_packed_encoder_trains_and_packs_what_it_has_become():
    model = prepared()
    before = logits(model)
    model.train()
    assert packed_layers(model) == 0
    model(IDS).logits.square().sum().backward()
    assert packed_layers(model) == 0
    assert all(layer.ffn.w1.grad.abs().sum() > 0 for layer in model.layers)
    torch.optim.SGD(model.parameters(), lr=0.05).step()
    model.eval()
    after = logits(model)
    assert packed_layers(model) == 2
    assert (after - before).abs().max() > 1e-3
    torch.testing.assert_close(after, reference(model), atol=1e-4, rtol=0)


def test_a_packed_encoder_records_gradients_in_eval_mode():
    model = prepared()
    model(IDS).logits.sum().backward()
    assert all(layer.ffn.w2.grad.abs().sum() > 0 for layer in model.layers)


def test_a_packed_encoder_is_cast():
    model = prepared()
    model.layers.bfloat16()
    model.embeddings.bfloat16()
    assert packed_layers(model) == 0
    torch.testing.assert_close(logits(model), reference(model), atol=6e-2, rtol=0)
    assert packed_layers(model) == 2


def test_a_packed_encoder_is_saved_copied_and_loaded(tmp_path):
    model = prepared()
    expected = logits(model)
    assert not any("packed" in name for name in model.state_dict())
    model.save_pretrained(tmp_path)
    loaded = FewshardTextForSequenceClassification.from_pretrained(tmp_path)
    torch.testing.assert_close(logits(loaded), expected, atol=1e-4, rtol=0)
    torch.testing.assert_close(logits(copy.deepcopy(model)), expected)
    model.load_state_dict({name: tensor * 0.5 for name, tensor in model.state_dict().items()})
    changed = logits(model)
    assert (changed - expected).abs().max() > 1e-3
    torch.testing.assert_close(changed, reference(model), atol=1e-4, rtol=0)
