#!/usr/bin/env bash
# torch 2.13.0: a dynamically quantised Linear rounds its inputs to seven bits, also where the CPU multiplies eight exactly.
#
# A good engineer expects: quantize_dynamic to int8 rounds inputs to 256 steps. Half of them are given up only on CPUs without
# VNNI, whose 16-bit sums of products may overflow.
# What happens: the module always calls its kernel with reduce_range=True, under the engine "x86" too, which knows of VNNI
# (`quantize_dynamic` has no argument for it). The same packed weights with reduce_range=False err about half as much.
# Seen: a mean error of 0.0080 against 0.0042, and no difference at all between the module and reduce_range=True. The script
# fails when that changes. It says "not applicable" where the CPU has neither AVX512-VNNI nor AVX-VNNI: there eight bits may
# overflow, and seven are right.
set -euo pipefail
if ! grep -qwE "avx512_vnni|avx_vnni" /proc/cpuinfo; then
    echo "not applicable: this CPU has no VNNI"
    exit 0
fi
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check --no-compile torch==2.13.0 numpy==2.4.6
cat >"$folder/linear.py" <<'PROGRAM'
import warnings

import torch

warnings.simplefilter("ignore")
torch.manual_seed(0)
linear = torch.nn.Linear(384, 384)
quantised = torch.ao.quantization.quantize_dynamic(torch.nn.Sequential(linear), {torch.nn.Linear}, torch.qint8)
inputs = torch.randn(64, 384)
packed = quantised[0]._packed_params._packed_params
with torch.inference_mode():
    right, module = linear(inputs), quantised(inputs)
    kernel = {
        reduced: torch.ops.quantized.linear_dynamic(inputs, packed, reduce_range=reduced) for reduced in (True, False)
    }
errors = {reduced: (outputs - right).abs().mean().item() for reduced, outputs in kernel.items()}
print(f"torch {torch.__version__}, engine {torch.backends.quantized.engine}")
print(f"mean error with reduce_range {errors}")
print(f"the module differs from reduce_range=True by {(module - kernel[True]).abs().max().item()}")
assert torch.equal(module, kernel[True]), "changed: the module no longer reduces the range"
assert errors[True] > 1.6 * errors[False], "changed: eight bits are no better"
PROGRAM
"$folder/venv/bin/python" "$folder/linear.py"
