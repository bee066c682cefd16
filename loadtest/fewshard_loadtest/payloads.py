"""Payloads of load tests: texts or images, with true labels where known. Does not import Locust."""

import csv
import io
import json
import os
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray

from fewshard_loadtest.errors import ScenarioError

IMAGE_SHAPE = (32, 32, 3)
NUM_DRAWN = 64
MAX_NAMED_ROWS = 5
MAX_FIELD = 2**31 - 1
SST2_LABELS = ("negative", "positive")


@dataclass(frozen=True, slots=True)
class Payload:
    """Items of one task in a fixed order.

    name: name of the payload in the report.
    items: texts, or images as uint8 [N, height, width, 3].
    labels: true label of each item, a name or a number; empty if unknown.
    task: a key of `tasks.TASKS`.
    remark: why the labels of a file are not used; "" otherwise.
    """

    name: str
    items: Sequence[Any] | NDArray[Any]
    labels: tuple[str, ...] = ()
    task: str = "text"
    remark: str = ""

    def __len__(self) -> int:
        return len(self.items)

    def at(self, places: Sequence[int]) -> list[Any]:
        """The items at these indices."""
        return [self.items[place] for place in places]


def load(name: str, seed: int = 0) -> Payload:
    """The payload with this name, or from a file.

    `texts`: SST-2's dev sentences if FEWSHARD_DATA is set, else sentences that ship with the package.
    `images`: generated images.
    `sst2`, `cifar10`: data sets in FEWSHARD_DATA.
    Raises `ScenarioError` if the payload is not available.
    """
    data = os.environ.get("FEWSHARD_DATA")
    folder = Path(data) if data else None
    if name in DATA_SETS:
        if folder is None:
            raise ScenarioError(f"the payload {name!r} needs FEWSHARD_DATA, the folder that holds {name}/")
        return DATA_SETS[name](folder)
    return SOURCES[name](folder, seed) if name in SOURCES else from_file(Path(name))


def own_texts() -> Payload:
    """Sixty sentences of one to over forty words that ship with the package."""
    text = (files("fewshard_loadtest") / "sentences.txt").read_text(encoding="utf-8")
    return Payload("our own sentences", tuple(text.splitlines()))


def drawn_images(seed: int, num_images: int = NUM_DRAWN) -> Payload:
    """Images of smooth random blocks: enough to measure cost, but not accuracy."""
    rng = random.Random(seed)
    pixels = b"".join(random_image(rng) for _ in range(num_images))
    return Payload("drawn images", np.frombuffer(pixels, np.uint8).reshape(-1, *IMAGE_SHAPE), task="image")


def random_image(rng: random.Random) -> bytes:
    """RGB pixels [32,32,3] of 8 x 8 blocks, row by row."""
    height, width, _ = IMAGE_SHAPE
    colours = [[rng.randbytes(3) for _ in range(width // 8)] for _ in range(height // 8)]
    return b"".join(colours[y // 8][x // 8] for y in range(height) for x in range(width))


def sst2(folder: Path) -> Payload:
    """SST-2's dev set: 872 sentences."""
    with _open(folder / "sst2" / "dev.tsv") as file:
        rows = [*csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE)]
    labels = tuple(SST2_LABELS[int(row["label"])] for row in rows)
    return Payload("SST-2 dev", tuple(row["sentence"].strip() for row in rows), labels)


def cifar10(folder: Path) -> Payload:
    """CIFAR-10's test set: 10,000 images."""
    return _images_of(folder / "cifar10" / "test.npz", "CIFAR-10 test")


SOURCES: dict[str, Callable[[Path | None, int], Payload]] = {
    "texts": lambda folder, _: own_texts() if folder is None else sst2(folder),
    "images": lambda _, seed: drawn_images(seed),
}
"""Loaders by payload name; each takes the data folder, if there is one, and the seed."""
DATA_SETS: dict[str, Callable[[Path], Payload]] = {"sst2": sst2, "cifar10": cifar10}
"""Loaders by data set; each takes the data folder."""


def from_file(path: Path) -> Payload:
    """The payload in a file, by its suffix.

    .txt: one text per line.
    .tsv, .csv, .jsonl: fields `text` (or `sentence`) and optionally `label`.
    .npz: `images` uint8 [N,H,W,3] and optionally `labels`.
    Raises `ScenarioError` that names the bad rows, before anything is sent.
    """
    read = FILES.get(path.suffix.lower())
    if read is None:
        known = ", ".join([*SOURCES, *DATA_SETS, *(f"a {suffix} file" for suffix in FILES)])
        raise ScenarioError(f"there is no payload {str(path)!r}; there are: {known}")
    try:
        return read(path)
    except UnicodeDecodeError:
        raise ScenarioError(
            f"{path}: is not UTF-8; convert it, as `iconv -f WINDOWS-1252 -t UTF-8` does"
        ) from None
    except csv.Error as error:
        raise ScenarioError(f"{path}: is no table of this form: {error}") from None


def _open(path: Path) -> io.TextIOWrapper:
    """Open a UTF-8 file, with or without the byte order mark that spreadsheets write."""
    try:
        return path.open(encoding="utf-8-sig", newline="")
    except OSError as error:
        raise ScenarioError(f"{path}: cannot be read: {error.strerror}") from None


def _lines(path: Path) -> list[Any]:
    with _open(path) as file:
        return [{"text": line.rstrip("\r\n")} for line in file]


def _table(path: Path, delimiter: str) -> list[Any]:
    csv.field_size_limit(MAX_FIELD)  # the default of 131,072 is less than a text may have
    with _open(path) as file:
        if delimiter == "\t":
            return [*csv.DictReader(file, delimiter=delimiter, quoting=csv.QUOTE_NONE)]
        return [*csv.DictReader(file, delimiter=delimiter)]


def _jsonl(path: Path) -> list[Any]:
    with _open(path) as file:
        return [_json_or_none(line) for line in file]


def _json_or_none(line: str) -> Any:
    try:
        return json.loads(line)
    except ValueError:
        return None


def _texts_of(path: Path, rows: Sequence[Any]) -> Payload:
    texts = [_text(row) for row in rows]
    bad = [number for number, text in enumerate(texts, start=1) if not text]
    if bad or not texts:
        some = ", ".join(map(str, bad[:MAX_NAMED_ROWS])) + (", …" if len(bad) > MAX_NAMED_ROWS else "")
        what = f"{len(bad)} of {len(texts)} rows hold no text (rows {some})" if texts else "holds no row"
        raise ScenarioError(f"{path}: {what}; each needs `text` or `sentence`, mend or remove them")
    labels = [_label(row) for row in rows]
    num_missing = labels.count("")
    remark = f"{num_missing} of its {len(rows)} rows have no label" if 0 < num_missing < len(rows) else ""
    known = () if num_missing else tuple(labels)
    return Payload(path.name, tuple(map(str, texts)), labels=known, remark=remark)


def _text(row: Any) -> str | None:
    """The row's text; None if it is missing, blank or not Unicode."""
    text = (row.get("text") or row.get("sentence")) if isinstance(row, dict) else None
    if not isinstance(text, str) or any("\ud800" <= letter <= "\udfff" for letter in text):
        return None
    return text.strip()


def _label(row: dict[str, Any]) -> str:
    """The row's label; "" if it has none."""
    label = row.get("label")
    if isinstance(label, float) and label.is_integer():
        label = int(label)  # pandas writes 1.0 for 1 where other rows have no label
    return "" if label is None else str(label).strip()


def _images_of(path: Path, name: str) -> Payload:
    try:
        with np.load(path, allow_pickle=False) as file:
            images = file["images"]
            labels = file.get("labels")
            classes = file.get("classes")
    except (OSError, ValueError, KeyError, EOFError, BadZipFile) as error:
        raise ScenarioError(f"{path}: cannot be read as images: {error}") from None
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[3] != 3 or not len(images):
        raise ScenarioError(
            f"{path}: `images` must be uint8 [N,H,W,3], not {images.dtype} {list(images.shape)}"
        )
    if labels is not None and labels.shape != images.shape[:1]:
        raise ScenarioError(f"{path}: {len(images)} images but labels of shape {list(labels.shape)}")
    try:
        names = _label_names(labels, classes)
    except (IndexError, TypeError):
        raise ScenarioError(f"{path}: `labels` must be numbers of its {len(classes)} `classes`") from None
    return Payload(name, images, names, task="image")


def _label_names(labels: NDArray[Any] | None, classes: NDArray[Any] | None) -> tuple[str, ...]:
    if labels is None:
        return ()
    if classes is None:
        return tuple(map(str, labels.tolist()))
    names = [each.decode() if isinstance(each, bytes) else str(each) for each in classes.tolist()]
    return tuple(names[label] for label in labels.tolist())


FILES: dict[str, Callable[[Path], Payload]] = {
    ".txt": lambda path: _texts_of(path, _lines(path)),
    ".tsv": lambda path: _texts_of(path, _table(path, "\t")),
    ".csv": lambda path: _texts_of(path, _table(path, ",")),
    ".jsonl": lambda path: _texts_of(path, _jsonl(path)),
    ".npz": lambda path: _images_of(path, path.name),
}
"""Readers by file suffix."""
