"""Parts of a test set that are looked at by themselves: by class, length and negation; called by `judge`."""

import re
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Rows = NDArray[np.int64]
LENGTHS = {"short (1-10 words)": (0, 10), "medium (11-20)": (11, 20), "long (21 and more)": (21, 10**9)}
_NEGATION = re.compile(
    r"\b(?:not|no|never|none|nothing|nobody|nowhere|neither|nor|without|cannot|hardly|barely)\b|n['’]t\b",
    re.IGNORECASE,
)


def class_slices(labels: NDArray[np.int64], names: Sequence[str]) -> dict[str, Rows]:
    """The rows of each class, by `class <name>`."""
    return {f"class {name}": np.flatnonzero(labels == index) for index, name in enumerate(names)}


def text_slices(texts: Sequence[str]) -> dict[str, Rows]:
    """The rows of each length and with and without a word of negation; empty ones are left out."""
    lengths = np.array([len(text.split()) for text in texts])
    found = {
        f"length {name}": np.flatnonzero((lengths >= low) & (lengths <= high))
        for name, (low, high) in LENGTHS.items()
    }
    negated = np.array([has_negation(text) for text in texts])
    found["negation"], found["no negation"] = np.flatnonzero(negated), np.flatnonzero(~negated)
    return {name: rows for name, rows in found.items() if len(rows)}


def has_negation(text: str) -> bool:
    """Whether an English word of negation occurs; "n't" counts, joined or apart as SST-2 writes it."""
    return _NEGATION.search(text) is not None
