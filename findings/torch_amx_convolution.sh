#!/usr/bin/env bash
# torch 2.13.0 (CPU with AMX): a bf16 convolution sums only a part of its kernel, and says nothing.
#
# A good engineer expects: a convolution in bf16 is the one in fp32 up to rounding. All images and weights are 1 here, so
# every output is the number of the kernel's weights: 8 x 8 over 8 channels = 512, which bf16 holds exactly.
# What happens: oneDNN's AMX kernels for convolutions add a part of the products only, where the kernel is larger than
# 3 x 3 and there are few channels: 4 x 4 with stride 4 over 24 channels, 8 x 8 with stride 8 over 8. Vision transformers
# that shrink keys and values by such convolutions (SegFormer, PVT) therefore give wrong classes in bf16. fp32 is right
# on the same CPU, and bf16 is right once oneDNN may not use AMX (ONEDNN_MAX_CPU_ISA=AVX512_CORE_BF16).
# Seen: 128 where 512 is right, and 288 where 384 is. The script fails when that changes. It says "not applicable" where
# the CPU has no amx_bf16, as the fault needs that.
set -euo pipefail
if ! grep -qw amx_bf16 /proc/cpuinfo; then
    echo "not applicable: this CPU has no amx_bf16"
    exit 0
fi
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check --no-compile torch==2.13.0 numpy==2.4.6
cat >"$folder/convolve.py" <<'PROGRAM'
import sys

import torch
from torch.nn.functional import conv2d


def outputs(channels: int, kernel: int, size: int, dtype: torch.dtype) -> list[float]:
    images = torch.ones(1, channels, size, size, dtype=dtype)
    weights = torch.ones(channels, channels, kernel, kernel, dtype=dtype)
    return conv2d(images, weights, stride=kernel).float().unique().tolist()


expected = [float(number) for number in sys.argv[1:]]
for dtype in (torch.float32, torch.bfloat16):
    found = [outputs(8, 8, 32, dtype), outputs(24, 4, 16, dtype)]
    print(f"torch {torch.__version__}, {dtype}: {found}; right are 512 and 384")
    wanted = [[512.0], [384.0]] if dtype == torch.float32 else [[number] for number in expected]
    assert found == wanted, f"changed: it was {wanted}"
PROGRAM
ONEDNN_MAX_CPU_ISA=AVX512_CORE_AMX "$folder/venv/bin/python" "$folder/convolve.py" 128 288
echo "without AMX:"
ONEDNN_MAX_CPU_ISA=AVX512_CORE_BF16 "$folder/venv/bin/python" "$folder/convolve.py" 512 384
