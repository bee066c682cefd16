#!/usr/bin/env bash
# transformers 5.23.0, safetensors 0.8.0: writing over model.safetensors changes a model that is loaded already.
#
# A good engineer expects: `from_pretrained` reads the weights; what happens to the file afterwards concerns the next load.
# What happens: on a CPU, weights whose type stays as stored are left as views of the mapped file. `cp` (or rsync --inplace)
# over that file writes into the running model: its next answer is the new checkpoint's, and in the middle of the copy a
# mixture of both. Replacing the file by a rename is safe.
# Seen: after the copy the logits of the loaded model equal those of the other checkpoint. The script fails when that
# changes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check --no-compile torch==2.13.0 transformers==5.23.0 safetensors==0.8.0
cd "$folder"
HF_HUB_OFFLINE=1 TRANSFORMERS_VERBOSITY=error "$folder/venv/bin/python" - <<'PROGRAM'
import shutil

import torch
import transformers
from transformers import BertConfig, BertForSequenceClassification

transformers.utils.logging.disable_progress_bar()
torch.manual_seed(0)
config = BertConfig(
    vocab_size=50, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16,
    max_position_embeddings=16,
)
for name in ("old", "new"):
    BertForSequenceClassification(config).save_pretrained(name)
text = torch.arange(8)[None]
with torch.no_grad():
    model = BertForSequenceClassification.from_pretrained("old").eval()
    before = model(text).logits
    shutil.copyfile("new/model.safetensors", "old/model.safetensors")
    after = model(text).logits
    new = BertForSequenceClassification.from_pretrained("new").eval()(text).logits
print(f"transformers {transformers.__version__}: {before.tolist()} before, {after.tolist()} after; new: {new.tolist()}")
assert not torch.equal(before, new), "the two checkpoints must differ"
assert torch.equal(after, new), "changed: the loaded model answered as the new file"
PROGRAM
