#!/usr/bin/env bash
# transformers 5.23.0: `position_embedding_type: "relative_key"` of a BERT checkpoint is accepted and not applied.
#
# A good engineer expects: a key that BERT's configuration had for years is heard, or refused where its code went away;
# checkpoints with it exist, and their weights hold a table `distance_embedding` in each layer.
# What happens: release 5 dropped relative positions from BERT's code. The configuration still takes the key and keeps it,
# the network has no such table, and the answer is the one of absolute positions. Loading a checkpoint lists the tables as
# unexpected in a log line at most; no error comes.
# Seen: equal logits for "absolute" and "relative_key" from the same seed, no table in the network, and the key still in
# its configuration. The script fails when that changes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check --no-compile torch==2.13.0 transformers==5.23.0
HF_HUB_OFFLINE=1 TRANSFORMERS_VERBOSITY=error "$folder/venv/bin/python" - <<'PROGRAM'
import torch
import transformers
from transformers import BertConfig, BertForSequenceClassification

logits, kept, tables = [], [], []
for kind in ("absolute", "relative_key"):
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=50, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16,
        max_position_embeddings=16, position_embedding_type=kind,
    )
    model = BertForSequenceClassification(config).eval()
    with torch.no_grad():
        logits.append(model(torch.arange(8)[None]).logits)
    kept.append(model.config.to_dict().get("position_embedding_type"))
    tables += [name for name in model.state_dict() if "distance_embedding" in name]
print(f"transformers {transformers.__version__}: {[each.tolist() for each in logits]} for {kept}; tables: {tables}")
assert torch.equal(*logits) and not tables, "changed: the two kinds were alike, with no table of distances"
assert kept == ["absolute", "relative_key"], "changed: the configuration kept the key"
PROGRAM
