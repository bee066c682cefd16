#!/usr/bin/env bash
# transformers 5.23.0: a BigBird model answers a long text differently for ever after one short text.
#
# A good engineer expects: `eval()` and `no_grad()` make a model's answer a function of its input; calls leave no trace.
# What happens: a text too short for sparse attention makes `BigBirdModel.forward` call `set_attention_type`, which
# replaces the attention of every layer by the full one and keeps it. Nothing turns it back, so the same long text gets
# other logits from then on. A line in the log says that the type changes, not that it stays.
# Seen: the largest difference between the logits of one text of 128 tokens before and after a text of 8 tokens is 4.554;
# between two calls with no short text it is 0. The script fails when that changes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check --no-compile torch==2.13.0 transformers==5.23.0
HF_HUB_OFFLINE=1 TRANSFORMERS_VERBOSITY=error "$folder/venv/bin/python" - <<'PROGRAM'
import torch
import transformers
from transformers import BigBirdConfig, BigBirdForSequenceClassification

torch.manual_seed(0)
config = BigBirdConfig(
    vocab_size=100, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64,
    max_position_embeddings=256, block_size=4, num_random_blocks=1, attention_type="block_sparse",
)
model = BigBirdForSequenceClassification(config).eval()
with torch.no_grad():
    for parameter in model.parameters():
        if parameter.dim() > 1:
            parameter.normal_(std=0.5)
    long, short = torch.arange(128)[None] % 97 + 3, torch.arange(8)[None] + 3
    first = model(long).logits
    again = model(long).logits
    model(short)
    after = model(long).logits
change = float((after - first).abs().max())
print(f"transformers {transformers.__version__}: {first.tolist()} before, {after.tolist()} after a short text")
print(f"attention now: {model.bert.attention_type}; the model was made with block_sparse")
assert torch.equal(first, again), "two calls with no short text between them differ"
assert change > 1, f"changed: the logits moved by {change}, it was 4.554"
assert model.bert.attention_type == "original_full", "changed: it was original_full"
PROGRAM
