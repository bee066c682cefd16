"""Quantised checkpoints answer as the network with the dequantised weights, or are refused by name.

Each layout is written here by hand, as its library writes it; `quantised.py` names the sources.
"""

import json

import numpy as np
import pytest
import torch
import transformers as tf

from fewshard_models.classifier.load import load
from fewshard_models.errors import CheckpointError
from fewshard_models.sharding.weights import load_shardable_config
from small_checkpoints import change_config, change_weights, reference, served, write_text

FP8_MAX = 448.0


def is_quantised(name, tensor):
    return name.endswith(".weight") and tensor.ndim == 2 and "layer." in name


def scale_of(weight, dims, largest):
    return weight.abs().amax(dims, keepdim=True).clamp(min=1e-6) / largest


def int8_channel(weight):
    scale = scale_of(weight, 1, 127)
    data = (weight / scale).round().to(torch.int8)
    return {"weight": data, "weight_scale": scale}, data.float() * scale


def int8_tensor(weight):
    scale = scale_of(weight, (0, 1), 127).reshape(1)
    data = (weight / scale).round().to(torch.int8)
    return {"weight": data, "weight_scale": scale.half()}, data.float() * scale.half().float()


def int8_zero_point(weight):
    low, high = weight.amin(1, keepdim=True), weight.amax(1, keepdim=True)
    scale = (high - low) / 255
    zero = (-128 - low / scale).round()
    data = (weight / scale + zero).round().clamp(-128, 127).to(torch.int8)
    stored = {
        "weight": data,
        "weight_scale": scale,
        "weight_zero_point": zero.clamp(-128, 127).to(torch.int8),
    }
    return stored, (data.float() - stored["weight_zero_point"].float()) * scale


def int8_group(weight, size=16):
    scale = weight.unflatten(1, (-1, size)).abs().amax(2) / 127
    data = (weight / scale.repeat_interleave(size, 1)).round().to(torch.int8)
    return {"weight": data, "weight_scale": scale}, data.float() * scale.repeat_interleave(size, 1)


def fp8_channel(weight, dtype=torch.float8_e4m3fn):
    scale = scale_of(weight, 1, FP8_MAX)
    data = (weight / scale).to(dtype)
    return {"weight": data, "weight_scale": scale, "input_scale": torch.ones(1)}, data.float() * scale


def fp8_tensor(weight):
    scale = scale_of(weight, (0, 1), FP8_MAX).reshape(())
    data = (weight / scale).to(torch.float8_e4m3fn)
    return {"weight": data, "weight_scale": scale, "input_scale": torch.ones(())}, data.float() * scale


def fp8_blocks(weight, rows=20, columns=12):
    """Blocks that do not divide the weight: the last ones are cut."""
    grid = [-(-size // length) for size, length in zip(weight.shape, (rows, columns), strict=True)]
    scale = torch.rand(grid) + 0.5
    spread = scale.repeat_interleave(rows, 0).repeat_interleave(columns, 1)
    spread = spread[: weight.shape[0], : weight.shape[1]]
    data = (weight / spread).to(torch.float8_e4m3fn)
    return {"weight": data, "weight_scale_inv": scale}, data.float() * spread


def fp8_power_of_two_blocks(weight, size=16):
    exponent = torch.randint(125, 130, (weight.shape[0] // size, weight.shape[1] // size), dtype=torch.uint8)
    spread = torch.exp2(exponent.float() - 127).repeat_interleave(size, 0).repeat_interleave(size, 1)
    data = (weight / spread).to(torch.float8_e4m3fn)
    return {"weight": data, "weight_scale_inv": exponent}, data.float() * spread


def bitsandbytes(weight):
    scb = weight.abs().amax(1)
    data = (weight / scb[:, None] * 127).round().to(torch.int8)
    stored = {"weight": data, "SCB": scb, "weight_format": torch.tensor(0, dtype=torch.uint8)}
    return stored, data.float() * scb[:, None] / 127


def quanto(weight):
    parts, plain = int8_channel(weight)
    stored = {"weight._data": parts["weight"], "weight._scale": parts["weight_scale"]}
    return {**stored, "input_scale": torch.ones(()), "output_scale": torch.ones(())}, plain


def compressed(kind, **weights):
    group = {"targets": ["Linear"], "weights": {"num_bits": 8, "type": "int", **weights}}
    settings = {"format": kind, "config_groups": {"group_0": group}, "ignore": ["classifier"]}
    return {"quant_method": "compressed-tensors", "quantization_status": "compressed", **settings}


BLOCKS = {"quant_method": "fp8", "activation_scheme": "dynamic"}
LAYOUTS = {
    "compressed-tensors, int8 a channel": (int8_channel, compressed("int-quantized")),
    "compressed-tensors, as short as allowed": (
        int8_channel,
        {"quant_method": "compressed-tensors", "format": "int-quantized"},
    ),
    "compressed-tensors, int8 a tensor": (int8_tensor, compressed("naive-quantized")),
    "compressed-tensors, zero points": (int8_zero_point, compressed("int-quantized", symmetric=False)),
    "compressed-tensors, groups": (int8_group, compressed("int-quantized", strategy="group", group_size=16)),
    "compressed-tensors, fp8 a channel": (fp8_channel, compressed("float-quantized", type="float")),
    "compressed-tensors, fp8 a tensor": (fp8_tensor, compressed("float-quantized", type="float")),
    "fbgemm_fp8": (fp8_channel, {"quant_method": "fbgemm_fp8"}),
    "modelopt": (fp8_tensor, {"quant_method": "modelopt", "quant_algo": "FP8"}),
    "fp8, cut blocks": (fp8_blocks, {**BLOCKS, "weight_block_size": [20, 12]}),
    "fp8, powers of two": (
        fp8_power_of_two_blocks,
        {**BLOCKS, "weight_block_size": [16, 16], "scale_fmt": "ue8m0"},
    ),
    "bitsandbytes, 8 bits": (bitsandbytes, {"quant_method": "bitsandbytes", "load_in_8bit": True}),
    "quanto through transformers": (quanto, {"quant_method": "quanto", "weights": "int8"}),
    "optimum-quanto alone": (quanto, None),
}


def quantise(directory, how, settings):
    """Store the layers' weights quantised. Returns the logits of the network with the dequantised weights."""
    plain, stored = {}, {}

    def change(weights):
        plain.update(weights)
        for name in [name for name in weights if is_quantised(name, weights[name])]:
            parts, plain[name] = how(weights[name].float())
            stored.update({name.removesuffix("weight") + part: value for part, value in parts.items()})

    change_weights(directory, change)
    change_weights(directory, lambda weights: weights.update(plain))
    right = reference(directory)

    def store(weights):
        for name in [name for name in weights if is_quantised(name, weights[name])]:
            del weights[name]
        weights.update(stored)

    change_weights(directory, store)
    if settings is not None:
        change_config(directory, quantization_config=settings)
    return right


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("config_class", [tf.BertConfig, tf.DebertaV2Config], ids=["converted", "as it is"])
def test_answers_are_those_of_the_dequantised_weights(layout, config_class, tmp_path):
    directory = write_text(tmp_path, config_class)
    before = reference(directory)
    right = quantise(directory, *LAYOUTS[layout])
    assert np.abs(right - before).max() > 1e-4, "rounding changed nothing, so the test proves nothing"
    np.testing.assert_allclose(served(directory), right, atol=1e-4)


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"quant_method": "gptq", "bits": 4}, "gptq"),
        ({"quant_method": "awq"}, "awq"),
        ({"quant_method": "hqq"}, "hqq"),
        ({"quant_method": "torchao"}, "torchao"),
        ({"quant_method": "mxfp4"}, "mxfp4"),
        ({"quant_method": "a-new-one"}, "a-new-one"),
        ({"bits": 8}, "of no stated method"),
        ({"quant_method": "bitsandbytes", "load_in_4bit": True}, "bitsandbytes, 4 bits"),
        ({"quant_method": "quanto", "weights": "int4"}, "quanto, int4"),
        ({"quant_method": "modelopt", "quant_algo": "NVFP4"}, "modelopt, NVFP4"),
        ({"quant_method": "fp8", "expert_dtype": "fp4"}, "fp8, fp4 experts"),
        (compressed("pack-quantized", num_bits=4), "compressed-tensors, pack-quantized"),
        ({"quant_method": "compressed-tensors", "format": "marlin-24"}, "compressed-tensors, marlin-24"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_other_methods_are_refused_by_name(settings, named, tmp_path):
    directory = write_text(tmp_path)
    change_config(directory, quantization_config=settings)
    with pytest.raises(
        CheckpointError, match=f"its weights are quantised: {named}, which Fewshard does not read"
    ):
        load(directory, "cpu", "fp32")


@pytest.mark.parametrize("settings", ["int8", 8, ["fp8"]])
def test_settings_that_are_no_object(settings, tmp_path):
    directory = write_text(tmp_path)
    change_config(directory, quantization_config=settings)
    with pytest.raises(CheckpointError, match="quantization_config"):
        load(directory, "cpu", "fp32")


def refusal_after(directory, change):
    quantise(directory, *LAYOUTS["compressed-tensors, int8 a channel"])
    change_weights(directory, change)
    with pytest.raises(CheckpointError) as caught:
        load(directory, "cpu", "fp32")
    return str(caught.value)


FIRST = "bert.encoder.layer.0.attention.output.dense.weight"


def test_a_weight_without_its_scale(tmp_path):
    told = refusal_after(write_text(tmp_path), lambda weights: weights.pop(FIRST + "_scale"))
    assert f"{FIRST} is stored in 8 bits without {FIRST}_scale" in told


def test_scales_that_do_not_fit(tmp_path):
    told = refusal_after(
        write_text(tmp_path), lambda weights: weights.update({FIRST + "_scale": torch.ones(7, 3)})
    )
    assert f"{FIRST} is [32, 32] and its scales are [7, 3]" in told


def test_scales_without_settings_are_unread_weights(tmp_path):
    directory = write_text(tmp_path)
    quantise(directory, int8_channel, None)
    with pytest.raises(CheckpointError, match=r"does not read: bert\.encoder.*weight_scale"):
        load(directory, "cpu", "fp32")


def test_an_order_of_bitsandbytes_own_is_refused(tmp_path):
    directory = write_text(tmp_path)
    quantise(directory, *LAYOUTS["bitsandbytes, 8 bits"])
    formats = {FIRST.removesuffix("weight") + "weight_format": torch.tensor(2, dtype=torch.uint8)}
    change_weights(directory, lambda weights: weights.update(formats))
    with pytest.raises(CheckpointError, match="an order that only bitsandbytes"):
        load(directory, "cpu", "fp32")


def test_quantised_weights_are_not_sharded(moe_checkpoint):
    directory = moe_checkpoint()
    change_config(directory, quantization_config={"quant_method": "fbgemm_fp8"})
    with pytest.raises(CheckpointError, match="leave experts out of its configuration"):
        load_shardable_config(directory)
    assert json.loads((directory / "config.json").read_text())["num_experts"] == 8
