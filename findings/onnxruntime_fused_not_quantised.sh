#!/usr/bin/env bash
# onnxruntime 1.32.0: what its own optimiser for transformers writes cannot be quantised by its own quantize_dynamic.
#
# A good engineer expects: fuse first, quantise then, as its documentation of transformers recommends; the quantiser knows the
# operators of com.microsoft, which it even has own quantised forms of (QAttention).
# What happens: it asks ONNX's shape inference for the type of every MatMul's output, and that stops at the first operator of
# com.microsoft: "Unable to find data type for weight_name=… This may happen if you quantize a model already quantized".
# extra_options={"DefaultTensorType": onnx.TensorProto.FLOAT} helps; so does symbolic shape inference before.
# Seen: RuntimeError without the option, a file with it. The script fails when that changes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check --no-compile \
    onnxruntime==1.32.0 onnx==1.23.2 numpy==2.4.6 sympy==1.14.0
cat >"$folder/quantise.py" <<'PROGRAM'
import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.quantization import quantize_dynamic
from onnxruntime.transformers.optimizer import optimize_model

# Gelu as torch exports it, between two linear layers, and something behind them.
weights = {name: np.random.default_rng(0).standard_normal((8, 8)).astype(np.float32) for name in ("w1", "w2")}
weights |= {"root": np.float32(2**0.5), "one": np.float32(1), "half": np.float32(0.5), "b": np.ones(8, np.float32)}
steps = ["MatMul x w1 a", "Add a b h", "Div h root d", "Erf d e", "Add e one p", "Mul h p m", "Mul m half g"]
steps += ["MatMul g w2 z", "Relu z y"]
nodes = [helper.make_node(op, names[:-1], names[-1:]) for op, *names in map(str.split, steps)]
given, answer = (helper.make_tensor_value_info(name, TensorProto.FLOAT, ["rows", 8]) for name in "xy")
tensors = [numpy_helper.from_array(np.asarray(value), name) for name, value in weights.items()]
graph = helper.make_graph(nodes, "gelu", [given], [answer], tensors)
onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), "plain.onnx")
fused = optimize_model("plain.onnx", "bert", num_heads=2, hidden_size=8, opt_level=0)
fused.save_model_to_file("fused.onnx")
quantize_dynamic("plain.onnx", "plain-int8.onnx")
print(f"onnxruntime {onnxruntime.__version__}: fused into {[node.op_type for node in fused.model.graph.node]}")
try:
    quantize_dynamic("fused.onnx", "int8.onnx")
    raise SystemExit("changed: it is quantised")
except RuntimeError as error:
    print("quantize_dynamic:", str(error)[:110])
    assert "Unable to find data type" in str(error), "changed"
quantize_dynamic("fused.onnx", "int8.onnx", extra_options={"DefaultTensorType": TensorProto.FLOAT})
print("with DefaultTensorType:", [node.op_type for node in onnx.load("int8.onnx").graph.node])
PROGRAM
cd "$folder"
venv/bin/python quantise.py
