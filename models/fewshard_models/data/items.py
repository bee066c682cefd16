"""Reads a user's own items, with or without labels: what `fewshard quantize` calibrates and compares on."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np

from fewshard_models.errors import DataError

LAYOUT = "text[<TAB>label]"


@dataclass(frozen=True, slots=True)
class Items:
    """Items of a file.

    name: the file's name.
    inputs: texts, paths of image files, or images uint8 [H, W, 3].
    labels: the index of each item's label; None if the file has none.
    """

    name: str
    inputs: Sequence[Any]
    labels: Sequence[int] | None

    def __len__(self) -> int:
        return len(self.inputs)

    def at(self, rows: Sequence[int]) -> "Items":
        """Some of the items, in this order."""
        labels = None if self.labels is None else [self.labels[row] for row in rows]
        return Items(self.name, [self.inputs[row] for row in rows], labels)


def read_items(file: Path, task: str, labels: Sequence[str]) -> Items:
    """Read a file of one task, "text" or "image".

    file: lines of `text[<TAB>label]` (`image file[<TAB>label]`, relative to it) under a header; or, of
        images, an .npz archive of an array `images` [N, H, W, 3] uint8 and, if wanted, `labels`.
    labels: the model's; a label in the file is one of them, or its number.

    Raises DataError with file and line.
    """
    if not file.is_file():
        raise DataError(f"no file {file}; it holds lines of `{LAYOUT}` under a header")
    if file.suffix == ".npz":
        return _read_arrays(file, task, labels)
    try:
        lines = file.read_text(encoding="utf-8").split("\n")[1:]
    except UnicodeDecodeError as error:
        raise DataError(f"{file} is not UTF-8: {error}; save it as UTF-8") from None
    rows = [line.rstrip("\r").split("\t") for line in lines]
    kept = [(number, row) for number, row in enumerate(rows, start=2) if row[0].strip()]
    if not kept:
        raise DataError(f"{file} has no rows under its header; it holds lines of `{LAYOUT}`")
    width = len(kept[0][1])
    for number, row in kept:
        if len(row) != width or width > 2:
            raise DataError(f"{file}, line {number}: expected `{LAYOUT}` as in its first row, got {row!r}")
    inputs = [_input(row[0], task, file.parent) for _, row in kept]
    found = [_label(file, number, row[1], labels) for number, row in kept] if width == 2 else None
    return Items(file.name, inputs, found)


def _input(word: str, task: str, folder: Path) -> str | Path:
    return folder / word if task == "image" else word


def _label(file: Path, number: int, word: str, labels: Sequence[str]) -> int:
    if word in labels:
        return list(labels).index(word)
    if word.isascii() and word.isdigit() and int(word) < len(labels):
        return int(word)
    raise DataError(f"{file}, line {number}: no label {word!r}; there are: {', '.join(labels)}")


def _read_arrays(file: Path, task: str, labels: Sequence[str]) -> Items:
    if task != "image":
        raise DataError(f"{file} holds arrays, and the model is of task {task}; give lines of `{LAYOUT}`")
    try:
        with np.load(file, allow_pickle=False) as arrays:
            images = arrays["images"]
            found = arrays.get("labels")
    except (KeyError, OSError, ValueError, EOFError, BadZipFile) as error:
        raise DataError(f"{file} is no .npz archive with an array `images`: {error}") from error
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[3] != 3 or not len(images):
        raise DataError(f"{file}: images must be uint8 [N, H, W, 3], got {images.dtype} {images.shape}")
    if found is None:
        return Items(file.name, list(images), None)
    is_whole = found.shape == (len(images),) and found.dtype.kind in "iu"
    if not is_whole or found.min() < 0 or found.max() >= len(labels):
        raise DataError(f"{file}: labels must be {len(images)} numbers from 0 to {len(labels) - 1}")
    return Items(file.name, list(images), found.tolist())
