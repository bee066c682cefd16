"""Out-of-domain sentences for SST-2 (Kotzias et al. 2015): reviews of products, films and restaurants."""

from dataclasses import dataclass
from pathlib import Path

from fewshard_models.data import data_dir
from fewshard_models.data.tsv import bad_row, read_rows

_LAYOUT = "sentence<TAB>0 or 1<TAB>domain"


@dataclass(frozen=True, slots=True)
class ReviewSentences:
    """Review sentences.

    labels: 0 negative, 1 positive.
    domains: the source of each sentence.
    """

    texts: list[str]
    labels: list[int]
    domains: list[str]


def review_sentences_file() -> Path:
    return data_dir() / "ood" / "review_sentences.tsv"


def load_review_sentences() -> ReviewSentences:
    """All sentences in file order. Raises DataError that names the file and the bad row."""
    file = review_sentences_file()
    found = ReviewSentences([], [], [])
    for number, row in read_rows(file, _LAYOUT):
        text, label, domain = row
        if label not in ("0", "1") or not text.strip() or not domain:
            raise bad_row(file, number, _LAYOUT, row)
        found.texts.append(text.strip())
        found.labels.append(int(label))
        found.domains.append(domain)
    return found
