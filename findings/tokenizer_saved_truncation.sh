#!/usr/bin/env bash
# transformers 5.23.0 and tokenizers 0.23.3: saving a tokenizer writes the last call's truncation and padding into its file.
#
# A good engineer expects: `truncation` and `max_length` are options of one call; `save_pretrained` writes the tokenizer.
# What happens: a fast tokenizer keeps the options of its last call in the shared Rust object, and `save_pretrained` writes
# them into tokenizer.json. Whoever reads that file with the tokenizers library (Rust servers do) cuts every later text at
# that call's length and pads every shorter one, without a word; `AutoTokenizer` drops both on reading, so the same folder
# gives two different encodings.
# Seen: after one call with max_length=4, a text of 20 words has 4 tokens and one word has 4 for the file's Rust reader; 20
# and 1 for AutoTokenizer. The script fails when that changes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check transformers==5.23.0 tokenizers==0.23.3
cd "$folder"
HF_HUB_OFFLINE=1 TRANSFORMERS_VERBOSITY=error "$folder/venv/bin/python" - <<'PROGRAM'
import tokenizers
import transformers
from tokenizers import Tokenizer, models, pre_tokenizers

words = {"[PAD]": 0, "[UNK]": 1, "rain": 2, "sun": 3}
rust = Tokenizer(models.WordLevel(words, unk_token="[UNK]"))
rust.pre_tokenizer = pre_tokenizers.Whitespace()
tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=rust, pad_token="[PAD]", unk_token="[UNK]")
tokenizer("rain", truncation=True, max_length=4, padding="max_length")
tokenizer.save_pretrained("saved")

texts = ("rain sun " * 10, "rain")
read_by_rust = [len(Tokenizer.from_file("saved/tokenizer.json").encode(text).ids) for text in texts]
read_by_auto = [len(transformers.AutoTokenizer.from_pretrained("saved")(text).input_ids) for text in texts]
print(f"transformers {transformers.__version__}, tokenizers {tokenizers.__version__}")
print(f"tokens of both texts: {read_by_rust} read by tokenizers, {read_by_auto} read by transformers")
assert (read_by_rust, read_by_auto) == ([4, 4], [20, 1]), "changed: it was [4, 4] and [20, 1]"
PROGRAM
