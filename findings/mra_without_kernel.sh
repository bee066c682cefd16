#!/usr/bin/env bash
# transformers 5.23.0: without its CUDA kernel MRA looks at no other token, and answers all the same.
#
# A good engineer expects: where an architecture's kernel cannot be built (no CUDA), its model is slow or raises.
# What happens: `MraModel` logs one line when it is made and then puts zeros in the place of attention. Each token is
# computed by itself, so a classifier, which reads the first token alone, gives every text the same class: that of [CLS].
# Seen: equal logits for two texts of 128 tokens that share only their first. The script fails when that changes. It
# hides CUDA devices, since the kernel is for them alone.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check --no-compile torch==2.13.0 transformers==5.23.0
CUDA_VISIBLE_DEVICES='' HF_HUB_OFFLINE=1 TRANSFORMERS_VERBOSITY=error "$folder/venv/bin/python" - <<'PROGRAM'
import torch
import transformers
from transformers import MraConfig, MraForSequenceClassification

torch.manual_seed(0)
config = MraConfig(
    vocab_size=100, hidden_size=32, num_hidden_layers=2, num_attention_heads=1, intermediate_size=32,
    max_position_embeddings=130,
)
model = MraForSequenceClassification(config).eval()
one = torch.full((1, 128), 7)
other = one.clone()
other[0, 1:] = torch.arange(127) % 90 + 3
with torch.no_grad():
    for parameter in model.parameters():
        if parameter.dim() > 1:
            parameter.normal_(std=0.5)
    logits = [model(ids).logits for ids in (one, other)]
print(f"transformers {transformers.__version__}: {[each.tolist() for each in logits]} for two different texts")
assert torch.equal(*logits), "changed: both texts had the same logits"
PROGRAM
