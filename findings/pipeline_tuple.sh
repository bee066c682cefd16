#!/usr/bin/env bash
# transformers 5.23.0: the text-classification pipeline scores a tuple (text, pair) as its first text, with no error.
#
# A good engineer expects: ("premise", "hypothesis") is a pair, as for the tokenizer itself and in the examples of other
# pipelines; or it is refused, as the list ["premise", "hypothesis"] inside a list is.
# What happens: the pipeline's `__call__(*inputs)` wraps what it gets, the tuple arrives at the tokenizer as a batch of two
# texts, and the answer is that of row 0: the second text has no influence on it. A pair is heard only as a dict with
# "text" and "text_pair".
# Seen: the score of ("w1", "w2") is that of "w1" alone to 1e-6, the pair's differs by 0.28. The script fails when that
# changes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check --no-compile torch==2.13.0 transformers==5.23.0 tokenizers==0.23.3
HF_HUB_OFFLINE=1 TRANSFORMERS_VERBOSITY=error "$folder/venv/bin/python" - <<'PROGRAM'
import torch
import transformers
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import BertConfig, BertForSequenceClassification, PreTrainedTokenizerFast, pipeline

torch.manual_seed(2)
words = {"[PAD]": 0, "[UNK]": 1, "w1": 2, "w2": 3}
rust = Tokenizer(models.WordLevel(words, unk_token="[UNK]"))
rust.pre_tokenizer = pre_tokenizers.Whitespace()
tokenizer = PreTrainedTokenizerFast(tokenizer_object=rust, pad_token="[PAD]", unk_token="[UNK]")
config = BertConfig(
    vocab_size=4, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16,
    max_position_embeddings=8,
)
model = BertForSequenceClassification(config).eval()
with torch.no_grad():
    for parameter in model.parameters():
        if parameter.dim() > 1:
            parameter.normal_()
classify = pipeline("text-classification", model=model, tokenizer=tokenizer, device="cpu")


def probability(answer: dict[str, object]) -> float:
    score = float(answer["score"])
    return score if answer["label"] == "LABEL_1" else 1 - score


alone = probability(classify("w1")[0])
as_tuple = probability(classify(("w1", "w2")))
as_pair = probability(classify({"text": "w1", "text_pair": "w2"}))
print(f"transformers {transformers.__version__}: {alone=}, {as_tuple=}, {as_pair=}")
assert abs(as_tuple - alone) < 1e-6, "changed: a tuple had the score of its first text"
assert abs(as_pair - alone) > 0.01, "the second text must matter"
PROGRAM
