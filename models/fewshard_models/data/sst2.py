"""SST-2 (Socher et al. 2013, as in GLUE): sentences with a negative (0) or positive (1) label."""

import csv
from typing import Literal

from fewshard_models.data import data_dir
from fewshard_models.errors import DataError

LABELS = ("negative", "positive")


def load_sst2(split: Literal["train", "dev"]) -> tuple[list[str], list[int]]:
    """Sentences and labels in file order. Raises DataError naming the file and the bad row."""
    file = data_dir() / "sst2" / f"{split}.tsv"
    if not file.is_file():
        raise DataError(f"no file {file}; it holds lines of `sentence<TAB>label` under a header")
    texts, labels = [], []
    with file.open(encoding="utf-8", newline="") as lines:
        # Quoting is off because sentences hold bare quotes.
        rows = csv.reader(lines, delimiter="\t", quoting=csv.QUOTE_NONE)
        for number, row in enumerate(rows, start=1):
            if number == 1:
                continue
            if len(row) != 2 or row[1] not in ("0", "1"):
                raise DataError(f"{file}, line {number}: expected `sentence<TAB>0 or 1`, got {row!r}")
            texts.append(row[0].strip())
            labels.append(int(row[1]))
    return texts, labels
