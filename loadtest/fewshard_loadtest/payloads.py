"""The requests a load test sends, made once before it begins; `users` takes from them. No Locust in here."""

import csv
import json
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from urllib.parse import quote

IMAGE_SHAPE = (32, 32, 3)
JSON_HEADERS = {"Content-Type": "application/json"}


@dataclass(frozen=True, slots=True)
class Request:
    """One POST. An answer without the bytes `expected` counts as a failure, whatever its status."""

    path: str
    headers: dict[str, str]
    body: bytes
    expected: bytes


def sentences(data_dir: Path | None) -> list[str]:
    """SST-2's dev sentences where the data folder is given, else our own 60 that ship with the package."""
    if data_dir is None:
        text = (files("fewshard_loadtest") / "sentences.txt").read_text(encoding="utf-8")
        return text.splitlines()
    with (data_dir / "sst2" / "dev.tsv").open(encoding="utf-8", newline="") as file:
        rows = csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE)
        return [row["sentence"].strip() for row in rows]


def classify_request(model: str, texts: Sequence[str]) -> Request:
    """The `classify` endpoint with one text or a list."""
    inputs = texts[0] if len(texts) == 1 else list(texts)
    return Request(_path(model, "classify"), JSON_HEADERS, _json({"inputs": inputs}), b'"predictions"')


def infer_request(model: str, texts: Sequence[str]) -> Request:
    """Open Inference Protocol V2 in JSON: `text` BYTES [N], asking for the scores."""
    tensor = {"name": "text", "datatype": "BYTES", "shape": [len(texts)], "data": list(texts)}
    body = _json({"inputs": [tensor], "outputs": [{"name": "scores"}]})
    return Request(_path(model, "infer"), JSON_HEADERS, body, b'"outputs"')


def image_request(model: str, images: Sequence[bytes]) -> Request:
    """Open Inference Protocol V2 with a binary tensor: `image` UINT8 [N,32,32,3], asking for the scores."""
    pixels = b"".join(images)
    tensor = {
        "name": "image",
        "datatype": "UINT8",
        "shape": [len(images), *IMAGE_SHAPE],
        "parameters": {"binary_data_size": len(pixels)},
    }
    head = _json({"inputs": [tensor], "outputs": [{"name": "scores"}]})
    headers = {"Content-Type": "application/octet-stream", "Inference-Header-Content-Length": str(len(head))}
    return Request(_path(model, "infer"), headers, head + pixels, b'"outputs"')


def text_requests(
    make: Callable[[str, Sequence[str]], Request],
    model: str,
    num_items: int,
    seed: int,
    data_dir: Path | None,
) -> list[Request]:
    """One request a sentence, each filled up with `num_items - 1` more drawn at random."""
    texts = sentences(data_dir)
    rng = random.Random(seed)
    return [make(model, [text, *rng.choices(texts, k=num_items - 1)]) for text in texts]


def image_requests(model: str, num_items: int, seed: int, num_requests: int = 64) -> list[Request]:
    """Images of smooth random blocks: what a classifier's cost needs, not what its accuracy needs."""
    rng = random.Random(seed)
    return [image_request(model, [random_image(rng) for _ in range(num_items)]) for _ in range(num_requests)]


def random_image(rng: random.Random) -> bytes:
    """RGB pixels [32,32,3] of 8 x 8 blocks, row by row."""
    height, width, _ = IMAGE_SHAPE
    colours = [[rng.randbytes(3) for _ in range(width // 8)] for _ in range(height // 8)]
    return b"".join(colours[y // 8][x // 8] for y in range(height) for x in range(width))


def _path(model: str, verb: str) -> str:
    return f"/v2/models/{quote(model, safe='')}/{verb}"


def _json(value: object) -> bytes:
    return json.dumps(value, ensure_ascii=False).encode()
