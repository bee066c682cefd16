#!/usr/bin/env bash
# transformers 5.23.0: PvtConfig(id2label=...) makes a head of 1,000 classes whatever the labels are.
#
# A good engineer expects: the number of labels follows from `id2label`, as in other configurations (ViTConfig): two labels
# make a head of two.
# What happens: PvtConfig has a field `num_labels` of its own with the default 1,000. It hides the property that counts the
# labels, and the network's head takes its width from it: predictions above 1 have no name. Only `num_labels=2` beside
# the labels helps.
# Seen: 2 labels and a width of 1,000 from PvtConfig, 2 and 2 from ViTConfig; 2 and 2 with `num_labels=2`. The script fails
# when that changes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check --no-compile transformers==5.23.0
HF_HUB_OFFLINE=1 TRANSFORMERS_VERBOSITY=error "$folder/venv/bin/python" - <<'PROGRAM'
import transformers
from transformers import PvtConfig, ViTConfig

labels = {0: "cat", 1: "dog"}
configs = (PvtConfig(id2label=labels), ViTConfig(id2label=labels), PvtConfig(id2label=labels, num_labels=2))
found = [(config.model_type, len(config.id2label), config.num_labels) for config in configs]
print(f"transformers {transformers.__version__}: kind, labels and width of the head: {found}")
assert found == [("pvt", 2, 1000), ("vit", 2, 2), ("pvt", 2, 2)], "changed: it was 1000, 2 and 2"
PROGRAM
