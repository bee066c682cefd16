#!/usr/bin/env bash
# transformers 5.23.0: with "longrope" positions a short text's logits depend on the longest text of its batch.
#
# A good engineer expects: right padding with an attention mask hides the neighbours; a text has the same answer alone and
# in a batch, up to rounding.
# What happens: above `original_max_position_embeddings` the rotary embedding takes other factors ("long_factor"), and it
# chooses them once for a forward pass, from the largest position in it. One longer text in the batch therefore turns the
# positions of every other one too (Phi-3, Phi-4 mini and others with 128k contexts).
# Seen: beside a text of 64 tokens (the limit) a text of 20 keeps its logits; beside one of 65 they move by 3.1. The
# script fails when that changes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check --no-compile torch==2.13.0 transformers==5.23.0
HF_HUB_OFFLINE=1 TRANSFORMERS_VERBOSITY=error "$folder/venv/bin/python" - <<'PROGRAM'
import torch
import transformers
from transformers import Phi3Config, Phi3ForSequenceClassification

torch.manual_seed(0)
rope = {
    "rope_type": "longrope", "rope_theta": 1e4, "original_max_position_embeddings": 64,
    "short_factor": [1.0] * 4, "long_factor": [9.0] * 4, "factor": 2.0,
}
config = Phi3Config(
    vocab_size=100, hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
    num_key_value_heads=2, max_position_embeddings=128, original_max_position_embeddings=64,
    rope_parameters=rope, pad_token_id=0, bos_token_id=1, eos_token_id=2,
)
model = Phi3ForSequenceClassification(config).eval()


def text(length: int) -> torch.Tensor:
    return torch.arange(length) % 97 + 3


def logits_of_the_first(texts: list[torch.Tensor]) -> torch.Tensor:
    ids = torch.nn.utils.rnn.pad_sequence(texts, batch_first=True)
    return model(input_ids=ids, attention_mask=(ids > 0).long()).logits[0]


with torch.no_grad():
    for parameter in model.parameters():
        if parameter.dim() > 1:
            parameter.normal_(std=0.5)
    alone = logits_of_the_first([text(20)])
    moved = {n: float((logits_of_the_first([text(20), text(n)]) - alone).abs().max()) for n in (64, 65)}
print(f"transformers {transformers.__version__}: the logits of 20 tokens move by {moved} beside so many tokens")
assert moved[64] < 1e-3 and moved[65] > 1, "changed: it was 0 beside 64 tokens and 3.1 beside 65"
PROGRAM
