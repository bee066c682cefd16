"""Corrupted texts: typos, letter case, dropped words, in three severities; called by `judge`."""

import zlib
from collections.abc import Callable, Sequence

import numpy as np

SEVERITIES = (1, 2, 3)
TYPO_SHARES = (0.1, 0.25, 0.5)
DROP_SHARES = (0.1, 0.2, 0.4)


def corrupt_texts(texts: Sequence[str], kind: str, severity: int, seed: int = 0) -> list[str]:
    """As many texts; the same for the same arguments. `kind`: one of KINDS, `severity`: 1 to 3.

    Each text has its own random numbers, so that a text's corruption does not depend on its neighbours.
    Raises ValueError for another kind or severity.
    """
    if kind not in KINDS or severity not in SEVERITIES:
        raise ValueError(
            f"no corruption {kind!r} of severity {severity}; there are {', '.join(KINDS)}, 1 to 3"
        )
    return [KINDS[kind](text, severity - 1, _generator(text, kind, severity, seed)) for text in texts]


def _generator(text: str, kind: str, severity: int, seed: int) -> np.random.Generator:
    return np.random.default_rng((seed, zlib.crc32(kind.encode()), severity, zlib.crc32(text.encode())))


def _typos(text: str, level: int, rng: np.random.Generator) -> str:
    """In a share of the words of four letters and more, one slip of the fingers each."""
    words = text.split(" ")
    long = [index for index, word in enumerate(words) if len(word) >= 4]
    if not long:
        return text
    count = max(1, round(TYPO_SHARES[level] * len(long)))
    for index in rng.choice(long, count, replace=False):
        words[index] = _misspelt(words[index], rng)
    return " ".join(words)


def _misspelt(word: str, rng: np.random.Generator) -> str:
    """Two neighbouring letters swapped, or one left out, or one doubled; the first letter stays."""
    at = int(rng.integers(1, len(word) - 1))
    swapped = word[:at] + word[at + 1] + word[at] + word[at + 2 :]
    left_out = word[:at] + word[at + 1 :]
    doubled = word[:at] + word[at] + word[at:]
    choices = [each for each in (swapped, left_out, doubled) if each != word]
    return choices[int(rng.integers(len(choices)))]


def _case(text: str, level: int, rng: np.random.Generator) -> str:
    """Severity 1: first letters capital; 2: all capitals; 3: each letter either way."""
    if level == 0:
        return " ".join(word[:1].upper() + word[1:] for word in text.split(" "))
    if level == 1:
        return text.upper()
    capital = rng.random(len(text)) < 0.5
    return "".join(c.upper() if up else c.lower() for c, up in zip(text, capital, strict=True))


def _dropped(text: str, level: int, rng: np.random.Generator) -> str:
    """A share of the words is left out, at least one where there are two or more."""
    words = text.split()
    if len(words) < 2:
        return text
    count = min(len(words) - 1, max(1, round(DROP_SHARES[level] * len(words))))
    gone = set(rng.choice(len(words), count, replace=False).tolist())
    return " ".join(word for index, word in enumerate(words) if index not in gone)


KINDS: dict[str, Callable[[str, int, np.random.Generator], str]] = {
    "typos": _typos,
    "case": _case,
    "dropped words": _dropped,
}
