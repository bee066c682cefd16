"""The experts of transformers' networks: which tokens they get, what is counted, and numbers that break."""

from functools import partial

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from fewshard_core.values import TextInput
from fewshard_models.classifier.load import load
from fewshard_models.classifier.padded_text import PaddedText
from fewshard_models.classifier.routed_experts import RoutedExperts, own_rows
from fewshard_models.conformance.text import BESIDE_LONG, write_checkpoint
from fewshard_models.conformance.words import SHORT, VOCABULARY
from fewshard_models.errors import CheckpointError, NotFiniteError


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    directory = tmp_path_factory.mktemp("qwen3-moe")
    write_checkpoint(directory, "qwen3_moe", num_local_experts=8)
    return directory


@pytest.fixture
def model(directory) -> PaddedText:
    model = load(directory, device="cpu", dtype="fp32")
    model.self_check()
    return model


def items(model, texts, wants_routing=False):
    return model.prepare([TextInput(text, wants_routing=wants_routing) for text in texts])


def test_what_loading_computes_is_not_counted(model):
    counts = model.expert_counts()
    assert counts.tokens.shape == (2, 8)
    assert counts.tokens.sum() == counts.rows.sum() == counts.entropy.sum() == 0
    assert model.info.kind == "moe"


def test_padding_is_neither_counted_nor_computed(model):
    given, computed = [], []

    def noting(compute, hidden, chosen, weights):
        computed.append(len(hidden))
        return compute(hidden, chosen, weights)

    for layer in model.experts.layers:
        layer.module.register_forward_pre_hook(lambda _, inputs: given.append(len(inputs[0])))
        watch, of, compute = layer.module.forward.func, *layer.module.forward.args
        layer.module.forward = partial(watch, of, partial(noting, compute))
    asked = items(model, BESIDE_LONG)
    own = sum(item.num_tokens for item in asked)
    output = model.run(asked)
    assert output.num_padding_tokens > 0
    assert sum(given) == 2 * (own + output.num_padding_tokens)
    assert sum(computed) == 2 * own
    assert (model.expert_counts().tokens.sum(axis=1) == 2 * own).all()
    assert (model.expert_counts().rows == own).all()


def test_entropy_and_probability_are_the_routers_own(model):
    (item,) = items(model, SHORT[5:6])
    logits = []
    for layer in model.experts.layers:
        layer.router.register_forward_hook(lambda _, inputs, output: logits.append(output[0]))
    model.run([item])
    counts = model.expert_counts()
    for number, each in enumerate(logits):
        p = each.double().softmax(-1)
        np.testing.assert_allclose(counts.probability[number], p.sum(0), rtol=1e-5)
        np.testing.assert_allclose(counts.entropy[number], -(p * p.log()).sum(), rtol=1e-5)


def test_a_token_has_the_same_experts_alone_and_in_a_padded_batch(model):
    together, alone = items(model, BESIDE_LONG, True), items(model, BESIDE_LONG, True)
    model.run(together)
    for item in alone:
        model.run([item])
    for one, other in zip(together, alone, strict=True):
        assert one.routing.experts == other.routing.experts
        assert np.shape(one.routing.experts) == (2, one.num_tokens, 2)
        assert len(one.routing.tokens) == one.num_tokens


def test_own_rows():
    assert own_rows([3, 3], 3, "right") is None
    assert own_rows([1, 3], 3, "right").tolist() == [0, 3, 4, 5]
    assert own_rows([1, 3], 3, "left").tolist() == [2, 3, 4, 5]


def test_layers_that_cannot_be_added_up_are_not_counted(model):
    experts: RoutedExperts = model.experts
    _, chosen = model._routed_pass([items(model, SHORT[5:6])[0].features], None)
    num_tokens = len(chosen[0].experts)
    assert experts.uncounted(chosen, num_tokens) == ""
    assert "routes something else" in experts.uncounted(chosen, num_tokens + 1)
    assert "2 layers have experts, and 1 ran" in experts.uncounted(chosen[:1], num_tokens)
    other = [chosen[0], chosen[1]._replace(experts=chosen[1].experts[:, :1])]
    assert "different numbers" in experts.uncounted(other, num_tokens)


def changed(directory, target, change):
    """A copy of a checkpoint with one change of its tensors."""
    target.mkdir()
    for file in directory.iterdir():
        (target / file.name).write_bytes(file.read_bytes())
    tensors = load_file(directory / "model.safetensors")
    change(tensors)
    save_file(tensors, target / "model.safetensors", {"format": "pt"})
    return target


ODD = "w0"
"""A word that no probe text holds."""


def test_a_router_that_overflows_fails_one_item_and_is_named(directory, tmp_path):
    def overflow(tensors):
        """Feature 7 of one word is as large as a normalised state's can be; the router multiplies it."""
        tensors["model.embed_tokens.weight"][VOCABULARY.index(ODD), 7] = 1e3
        tensors["model.layers.0.post_attention_layernorm.weight"][:] = 1.0
        tensors["model.layers.0.mlp.gate.weight"][3, 7] = 8e37

    model = load(changed(directory, tmp_path / "overflow", overflow), device="cpu", dtype="fp32")
    good, bad = items(model, [SHORT[5], f"{SHORT[5]} {ODD} {SHORT[3]}"])
    output = model.run([good, bad])
    assert np.isfinite(output.logits[0]).all()
    assert not np.isfinite(output.logits[1]).any()
    with pytest.raises(NotFiniteError, match=r"in the router of layer 0 \(model\.layers\.0\.mlp\.experts\)"):
        model.run([bad])
    np.testing.assert_allclose(model.run([good]).logits[0], output.logits[0], atol=1e-5)


def test_an_expert_that_is_damaged_is_named(model):
    (item,) = items(model, SHORT[8:9], wants_routing=True)
    model.run([item])
    used = item.routing.experts[1][-1][0]
    with torch.no_grad():
        model.experts.layers[1].module.down_proj[used] = float("nan")
    with pytest.raises(NotFiniteError, match=rf"in the experts of layer 1 .*, of which .*\b{used}\b"):
        model.run([item])


def test_numbers_that_break_before_the_experts_or_behind_them(model):
    (item,) = items(model, SHORT[5:6])
    with torch.no_grad():
        model.network.score.weight[0, 0] = float("nan")
        with pytest.raises(NotFiniteError, match="first after the last layer with experts"):
            model.run([item])
        model.network.model.layers[0].self_attn.o_proj.weight[0, 0] = float("nan")
        with pytest.raises(NotFiniteError, match="first before the router of layer 0"):
            model.run([item])


def test_a_router_that_is_damaged_is_refused_at_load(directory, tmp_path):
    def change(tensors):
        tensors["model.layers.1.mlp.gate.weight"][3, 5] = float("nan")

    with pytest.raises(CheckpointError, match=r"first in the router of layer 1 .*its weights are damaged"):
        load(changed(directory, tmp_path / "damaged", change), device="cpu", dtype="fp32")
