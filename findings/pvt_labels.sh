#!/usr/bin/env bash
# transformers 5.23.0: PvtConfig(id2label=...) makes a head of 1,000 classes whatever the labels are.
#
# A good engineer expects: the number of labels follows from `id2label`, as in other configurations (ViTConfig): two labels
# make a head of two.
# What happens: PvtConfig has a field `num_labels` of its own with the default 1,000, which hides the property that counts the
# labels. The labels are kept, the head has 1,000 rows, and predictions above 1 have no name. Only `num_labels=2` beside
# the labels helps.
# Seen: 2 labels and 1,000 logits from PvtConfig, 2 and 2 from ViTConfig. The script fails when that changes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check --no-compile torch==2.13.0 transformers==5.23.0
HF_HUB_OFFLINE=1 TRANSFORMERS_VERBOSITY=error "$folder/venv/bin/python" - <<'PROGRAM'
import torch
import transformers
from transformers import AutoModelForImageClassification, PvtConfig, ViTConfig

labels = {0: "cat", 1: "dog"}
small = {"num_hidden_layers": 1, "hidden_size": 16, "intermediate_size": 16, "num_attention_heads": 2}
found = {}
for config in (PvtConfig(id2label=labels), ViTConfig(id2label=labels, **small)):
    with torch.device("meta"):
        model = AutoModelForImageClassification.from_config(config)
    found[config.model_type] = (len(config.id2label), model.classifier.out_features)
print(f"transformers {transformers.__version__}: labels and classes of the head: {found}")
assert found == {"pvt": (2, 1000), "vit": (2, 2)}, "changed: it was (2, 1000) and (2, 2)"
PROGRAM
