"""Makes a MiniLM-sized text classifier, or says which labels one gives; runs in Fewshard's environment.

checkpoint.py make DIR [--encoder DIR] < texts.json    from an encoder, or of random weights
checkpoint.py labels DIR < texts.json    labels in fp32, one text at a time, and how sure each is
"""

import argparse
import json
import sys
from pathlib import Path

import torch
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BertConfig,
    BertForSequenceClassification,
    BertTokenizerFast,
)

SEED = 0
LABELS = {0: "negative", 1: "positive"}
SIZES = {"hidden_size": 384, "num_hidden_layers": 6, "num_attention_heads": 12, "intermediate_size": 1536}
VOCABULARY_SIZE = 30_522
HEAD_STD = 1.0
NUM_BALANCED = 64


def make(directory: Path, encoder: Path | None, texts: list[str]) -> None:
    """Save a classifier with a head of fixed seed, on the encoder's weights if given, else random ones."""
    torch.manual_seed(SEED)
    ids = {label: index for index, label in LABELS.items()}
    labels = {"num_labels": len(LABELS), "id2label": LABELS, "label2id": ids}
    if encoder is None:
        tokenizer = made_up_tokenizer(texts)
        model = BertForSequenceClassification(BertConfig(vocab_size=VOCABULARY_SIZE, **SIZES, **labels))
    else:
        tokenizer = AutoTokenizer.from_pretrained(encoder, local_files_only=True)
        tokenizer.model_max_length = 512
        model = BertForSequenceClassification.from_pretrained(encoder, local_files_only=True, **labels)
    # Wider than usual, so that labels are clear-cut and do not change with the dtype.
    torch.nn.init.normal_(model.classifier.weight, std=HEAD_STD)
    balance(model.eval(), tokenizer, texts[:NUM_BALANCED])
    model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)


def balance(model: BertForSequenceClassification, tokenizer: BertTokenizerFast, texts: list[str]) -> None:
    """Shift the bias so that half of these texts are positive; a single label would hide wrong answers."""
    gaps = []
    for text in texts:
        with torch.inference_mode():
            negative, positive = (
                model(**tokenizer(text, truncation=True, return_tensors="pt")).logits[0].tolist()
            )
        gaps.append(positive - negative)
    with torch.no_grad():
        model.classifier.bias[1] -= sorted(gaps)[len(gaps) // 2]


def made_up_tokenizer(texts: list[str]) -> BertTokenizerFast:
    """WordPiece over the words and letters of these texts; gives about as many tokens as a real one."""
    words = sorted({word for text in texts for word in text.lower().split()})
    letters = sorted({letter for word in words for letter in word})
    vocabulary = [
        "[PAD]",
        "[UNK]",
        "[CLS]",
        "[SEP]",
        "[MASK]",
        *letters,
        *(f"##{x}" for x in letters),
        *words,
    ]
    vocabulary = list(dict.fromkeys(vocabulary))[:VOCABULARY_SIZE]
    return BertTokenizerFast(
        vocab={word: index for index, word in enumerate(vocabulary)}, model_max_length=512
    )


def labels_of(directory: Path, texts: list[str]) -> list[dict[str, object]]:
    """The best label of each text and the gap between its two best logits."""
    tokenizer = AutoTokenizer.from_pretrained(directory, local_files_only=True)
    model = AutoModelForSequenceClassification.from_pretrained(
        directory, local_files_only=True, dtype=torch.float32
    ).eval()
    found = []
    for text in texts:
        with torch.inference_mode():
            logits = model(**tokenizer(text, truncation=True, return_tensors="pt")).logits[0]
        best, second = logits.topk(2).values.tolist()
        found.append({"label": model.config.id2label[int(logits.argmax())], "margin": best - second})
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("action", choices=("make", "labels"))
    parser.add_argument("directory", type=Path)
    parser.add_argument("--encoder", type=Path)
    options = parser.parse_args()
    texts = json.load(sys.stdin)
    if options.action == "make":
        make(options.directory, options.encoder, texts)
    else:
        json.dump(labels_of(options.directory, texts), sys.stdout)


if __name__ == "__main__":
    main()
