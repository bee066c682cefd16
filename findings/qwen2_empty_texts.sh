#!/usr/bin/env bash
# transformers 5.23.0: AutoTokenizer makes no tokens at all of any text where config.json says qwen2.
#
# A good engineer expects: a folder's tokenizer_config.json says which class its tokenizer is ("TokenizersBackend", what
# `save_pretrained` writes for any tokenizer.json), and AutoTokenizer builds that one, as it does beside other models.
# What happens: for model_type qwen2 the class is passed over: AutoTokenizer builds Qwen2Tokenizer, which replaces the file's
# normalizer and pre-tokenizer by Qwen's byte-level ones around the file's vocabulary. Words of another vocabulary are no
# longer found, and nothing takes their place: the list of ids is empty, with no error.
# Seen: [] for qwen2, the two ids for bert, llama and mistral, from the same file. The script fails when that changes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check --no-compile transformers==5.23.0 tokenizers==0.23.3
cd "$folder"
HF_HUB_OFFLINE=1 TRANSFORMERS_VERBOSITY=error "$folder/venv/bin/python" - <<'PROGRAM'
import json
from pathlib import Path

import transformers
from tokenizers import Tokenizer, models, pre_tokenizers

rust = Tokenizer(models.WordLevel({"[PAD]": 0, "[UNK]": 1, "rain": 2, "sun": 3}, unk_token="[UNK]"))
rust.pre_tokenizer = pre_tokenizers.Whitespace()
tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=rust, pad_token="[PAD]", unk_token="[UNK]")
tokenizer.save_pretrained("saved")
stated = json.loads(Path("saved/tokenizer_config.json").read_text())["tokenizer_class"]
found = {}
for model_type in ("qwen2", "bert", "llama", "mistral"):
    Path("saved/config.json").write_text(json.dumps({"model_type": model_type}))
    read = transformers.AutoTokenizer.from_pretrained("saved")
    found[model_type] = (type(read).__name__, read("rain sun").input_ids)
print(f"transformers {transformers.__version__}; the file says {stated}")
for model_type, (name, ids) in found.items():
    print(f"{model_type}: {name}, {ids}")
right = ("TokenizersBackend", [2, 3])
assert stated == "TokenizersBackend", "changed: the file said TokenizersBackend"
assert found.pop("qwen2") == ("Qwen2Tokenizer", []), "changed: it was Qwen2Tokenizer with no ids"
assert set(map(repr, found.values())) == {repr(right)}, "changed beside the other models"
PROGRAM
