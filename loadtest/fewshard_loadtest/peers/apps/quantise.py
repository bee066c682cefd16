"""Exports a classifier for OpenVINO and ONNX Runtime and quantises it; runs in `engines`' environment.

    quantise.py MODEL OUT < texts.json

The texts calibrate: static quantisation chooses the ranges of activations from them. Writes
OUT/openvino/{fp32,int8}.xml and OUT/onnx/{fp32,int8-dynamic,int8-static}.onnx.
"""

import json
import sys
from pathlib import Path
from typing import Any

import engine
import nncf
import onnx
import openvino
import torch
from onnxruntime.quantization import (
    CalibrationDataReader,
    CalibrationMethod,
    QuantFormat,
    QuantType,
    quantize_dynamic,
    quantize_static,
)
from onnxruntime.quantization.shape_inference import quant_pre_process
from onnxruntime.transformers.optimizer import optimize_model
from transformers import AutoModelForSequenceClassification

CALIBRATION_BATCH = 1


class Wrapped(torch.nn.Module):
    """The logits alone, from positional inputs, which exporters can trace."""

    def __init__(self, model: Any, names: list[str]) -> None:
        super().__init__()
        self.model, self.names = model, names

    def forward(self, *inputs: torch.Tensor) -> torch.Tensor:
        return self.model(**dict(zip(self.names, inputs, strict=True)), return_dict=True).logits


def main() -> None:
    """Export twice, quantise thrice."""
    source, out = Path(sys.argv[1]), Path(sys.argv[2])
    texts = json.load(sys.stdin)
    encode = engine.tokeniser(source)
    examples = [engine.padded([row]) for row in encode(texts)]
    model = AutoModelForSequenceClassification.from_pretrained(
        source, dtype=torch.float32, attn_implementation="eager"
    ).eval()
    for folder in ("openvino", "onnx"):
        (out / folder).mkdir(parents=True, exist_ok=True)
    to_onnx(model, source, out / "onnx", examples)
    to_openvino(model, out / "openvino", examples)


def to_onnx(model: Any, source: Path, out: Path, examples: list[dict[str, Any]]) -> None:
    names = list(engine.INPUTS)
    two = {name: torch.ones(2, 16, dtype=torch.int64) for name in names}
    axes = {0: "texts", 1: "tokens"}
    raw, fp32 = out / "raw.onnx", out / "fp32.onnx"
    torch.onnx.export(
        Wrapped(model, names),
        tuple(two.values()),
        raw,
        input_names=names,
        output_names=["logits"],
        dynamic_axes={**dict.fromkeys(names, axes), "logits": {0: "texts"}},
        opset_version=17,
        dynamo=False,
    )
    config = model.config
    fused = optimize_model(
        str(raw), "bert", num_heads=config.num_attention_heads, hidden_size=config.hidden_size
    )
    print(fused.get_fused_operator_statistics(), file=sys.stderr)
    fused.save_model_to_file(str(fp32))
    quantize_dynamic(
        fp32,
        out / "int8-dynamic.onnx",
        per_channel=True,
        weight_type=QuantType.QInt8,
        extra_options={"DefaultTensorType": onnx.TensorProto.FLOAT},
    )
    ready = out / "ready.onnx"
    quant_pre_process(str(raw), str(ready), skip_symbolic_shape=True)

    class Reader(CalibrationDataReader):
        def __init__(self) -> None:
            self.rows = iter(examples)

        def get_next(self) -> dict[str, Any] | None:
            return next(self.rows, None)

    quantize_static(
        ready,
        out / "int8-static.onnx",
        Reader(),
        quant_format=QuantFormat.QDQ,
        per_channel=True,
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
        op_types_to_quantize=["MatMul", "Gemm"],
        calibrate_method=CalibrationMethod.MinMax,
    )
    raw.unlink()
    ready.unlink()


def to_openvino(model: Any, out: Path, examples: list[dict[str, Any]]) -> None:
    example = {name: torch.ones(2, 16, dtype=torch.int64) for name in engine.INPUTS}
    converted = openvino.convert_model(model, example_input=example)
    openvino.save_model(converted, out / "fp32.xml", compress_to_fp16=False)
    quantised = nncf.quantize(
        converted,
        nncf.Dataset(examples),
        model_type=nncf.ModelType.TRANSFORMER,
        subset_size=len(examples),
    )
    openvino.save_model(quantised, out / "int8.xml")


if __name__ == "__main__":
    main()
