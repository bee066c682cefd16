"""Checkpoints whose experts do not fit their configuration are refused, with the tensor and what to do."""

import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from fewshard_models.classifier.load import load
from fewshard_models.conformance.text import write_checkpoint
from fewshard_models.conformance.words import SHORT
from fewshard_models.errors import CheckpointError

LAYER = "model.layers.1.mlp"
EXPERT = f"{LAYER}.experts.3"


@pytest.fixture(scope="module", params=["qwen3_moe", "gpt_oss"])
def directory(request, tmp_path_factory):
    """One whose experts are stored one by one, and one that stores them merged."""
    directory = tmp_path_factory.mktemp(request.param)
    write_checkpoint(directory, request.param)
    return directory


@pytest.fixture(scope="module")
def by_expert(tmp_path_factory):
    directory = tmp_path_factory.mktemp("by-expert")
    write_checkpoint(directory, "qwen3_moe")
    return directory


def changed(directory, target, change=lambda tensors: None, **fields):
    """A copy with a change of its tensors, and fields of its configuration."""
    target = target / "changed"
    target.mkdir()
    for file in directory.iterdir():
        (target / file.name).write_bytes(file.read_bytes())
    tensors = load_file(directory / "model.safetensors")
    change(tensors)
    tensors = {name: tensor.clone().contiguous() for name, tensor in tensors.items()}
    save_file(tensors, target / "model.safetensors", {"format": "pt"})
    config = json.loads((directory / "config.json").read_text())
    (target / "config.json").write_text(json.dumps(config | fields))
    return target


def refusal(directory):
    with pytest.raises(CheckpointError) as error:
        load(directory, device="cpu", dtype="fp32")
    return str(error.value)


def test_a_router_of_another_number_of_experts(directory, tmp_path):
    def cut(tensors):
        (name,) = [name for name in tensors if name.startswith(f"{LAYER}.") and name.endswith(ROUTERS)]
        tensors[name] = tensors[name][:3]

    told = refusal(changed(directory, tmp_path, cut))
    assert "weight is [3, 32], the network's [4, 32]" in told
    assert "correct vocab_size, id2label (one name an output), numbers of experts" in told


ROUTERS = ("gate.weight", "router.weight")


def test_more_experts_a_token_than_there_are(directory, tmp_path):
    told = refusal(changed(directory, tmp_path, num_experts_per_tok=9))
    assert "says 9 experts a token, and there are 4 in model.layers.0.mlp" in told
    assert "correct num_experts_per_tok" in told


def test_a_merged_tensor_that_is_missing_or_lacks_an_expert(tmp_path_factory):
    directory = tmp_path_factory.mktemp("gpt-oss")
    write_checkpoint(directory, "gpt_oss")
    name = f"{LAYER}.experts.down_proj"
    told = refusal(changed(directory, tmp_path_factory.mktemp("a"), lambda tensors: tensors.pop(name)))
    assert f"lacks weights of the right shape for {name}" in told
    cut = changed(
        directory, tmp_path_factory.mktemp("b"), lambda tensors: tensors.update({name: tensors[name][:3]})
    )
    assert f"{name} is [3, 64, 32], the network's [4, 64, 32]" in refusal(cut)


CASES = {
    "a part of one expert": (
        lambda tensors: tensors.pop(f"{EXPERT}.up_proj.weight"),
        f"lacks {EXPERT}.up_proj.weight, which other experts have; copy it again, whole",
    ),
    "a whole expert": (
        lambda tensors: [tensors.pop(name) for name in list(tensors) if name.startswith(EXPERT)],
        f"holds 3 experts in {LAYER}.experts, numbered 0 to 2, and config.json says 4; correct the number",
    ),
    "one too many": (
        lambda tensors: tensors.update(
            {
                name.replace("experts.3", "experts.7"): tensors[name]
                for name in list(tensors)
                if EXPERT in name
            }
        ),
        f"holds 5 experts in {LAYER}.experts, numbered 0 to 7, and config.json says 4",
    ),
    "one of another size": (
        lambda tensors: tensors.update({f"{EXPERT}.up_proj.weight": torch.ones(10, 32)}),
        f"{EXPERT}.up_proj.weight in ",
    ),
    "whole numbers": (
        lambda tensors: tensors.update({f"{EXPERT}.up_proj.weight": torch.ones(64, 32, dtype=torch.int8)}),
        f"stores {EXPERT}.up_proj.weight as I8, where the network has fractions",
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_experts_stored_one_by_one(name, by_expert, tmp_path):
    change, told = CASES[name]
    assert told in refusal(changed(by_expert, tmp_path, change))


@pytest.mark.parametrize("method", ["mxfp4", "gptq", "awq"])
def test_quantised_experts_that_are_not_read(method, directory, tmp_path):
    told = refusal(changed(directory, tmp_path, quantization_config={"quant_method": method}))
    assert f"its weights are quantised: {method}, which Fewshard does not read" in told
    assert "save the model unquantised" in told


def test_experts_in_8_bits_are_read(by_expert, tmp_path):
    rounded = {}

    def to_8_bits(tensors):
        for name in [name for name in tensors if ".experts." in name]:
            scale = tensors[name].abs().max() / 448
            stored = (tensors[name] / scale).to(torch.float8_e4m3fn)
            rounded[name] = stored.float() * scale
            tensors |= {name: stored, f"{name}_scale_inv": scale.reshape(1, 1)}

    settings = {"quant_method": "fp8", "weight_block_size": [128, 128]}
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    model = load(changed(by_expert, tmp_path / "a", to_8_bits, quantization_config=settings), dtype="fp32")
    plain = load(changed(by_expert, tmp_path / "b", lambda tensors: tensors.update(rounded)), dtype="fp32")
    assert len(rounded) == 2 * 4 * 3
    np.testing.assert_allclose(model(SHORT).logits, plain(SHORT).logits, atol=1e-5)
