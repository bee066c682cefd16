"""SST-2 (Socher et al. 2013, as in GLUE): sentences with a negative (0) or positive (1) label."""

from typing import Literal

from fewshard_models.data import data_dir
from fewshard_models.data.tsv import bad_row, read_rows

LABELS = ("negative", "positive")
_LAYOUT = "sentence<TAB>0 or 1"


def load_sst2(split: Literal["train", "dev"]) -> tuple[list[str], list[int]]:
    """Sentences and labels in file order. Raises DataError that names the file and the bad row."""
    file = data_dir() / "sst2" / f"{split}.tsv"
    texts, labels = [], []
    for number, row in read_rows(file, _LAYOUT):
        if row[1] not in ("0", "1") or not row[0].strip():
            raise bad_row(file, number, _LAYOUT, row)
        texts.append(row[0].strip())
        labels.append(int(row[1]))
    return texts, labels
