"""What the checks of real clients share: the server's addresses, inputs, the right answers, and the report.

A check is a function of a client's library; `run_all` runs those of one file and prints a line of JSON for
each. Only the standard library and numpy, because each file runs in the environment of its client.
"""

import json
import os
import struct
import traceback
import urllib.error
import urllib.request
import zlib
from collections.abc import Callable
from typing import Any

import numpy as np

URL = os.environ.get("FEWSHARD_URL", "127.0.0.1:8000")
GRPC = os.environ.get("FEWSHARD_GRPC", "127.0.0.1:8001")
TEXT_MODEL, IMAGE_MODEL = "sst2-dense", "cifar10-dense"
TEXTS = ["a gripping and often funny film", "two hours I want back", "früh übt sich"]
PIXELS = np.random.default_rng(3).integers(0, 256, (2, 32, 32, 3), dtype=np.uint8)
MANY = 1400
"""Images of 3,072 bytes: more than 4 MiB."""

Check = Callable[[], str]
_checks: list[tuple[str, str, Check]] = []


def check(client: str, asked: str) -> Callable[[Check], Check]:
    """Register a check. It returns what came of it, or raises."""

    def register(function: Check) -> Check:
        _checks.append((client, asked, function))
        return function

    return register


def run_all() -> None:
    """Run the registered checks, and print a line for each."""
    for client, asked, function in _checks:
        try:
            result, is_right = function(), True
        except Exception as error:  # noqa: BLE001  whatever a client raises belongs into the table
            where = traceback.extract_tb(error.__traceback__)[-1]
            result, is_right = f"{type(error).__name__}: {error} ({where.name})"[:300], False
        line = {"client": client, "asked": asked, "result": " ".join(result.split()), "is_right": is_right}
        print(json.dumps(line), flush=True)


def png(pixels: Any) -> bytes:
    """A PNG file of RGB pixels [H, W, 3]."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    height, width = pixels.shape[:2]
    rows = b"".join(b"\0" + row.tobytes() for row in pixels)
    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    parts = chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + parts


def post(path: str, body: bytes, **headers: str) -> Any:
    """The JSON that the server answers to plain HTTP. Raises `ValueError` with the text of an error."""
    request = urllib.request.Request(f"http://{URL}{path}", body, headers)
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return json.loads(answer.read())
    except urllib.error.HTTPError as error:
        raise ValueError(f"{error.code}: {error.read().decode()}") from None


def logits_of_texts(texts: list[str]) -> Any:
    """The right logits [N, C]: those of the V2 protocol in plain JSON."""
    return _logits(TEXT_MODEL, {"name": "text", "datatype": "BYTES", "shape": [len(texts)], "data": texts})


def logits_of_pixels(pixels: Any) -> Any:
    """The right logits [N, C] of images."""
    tensor = {
        "name": "image",
        "datatype": "UINT8",
        "shape": list(pixels.shape),
        "data": pixels.ravel().tolist(),
    }
    return _logits(IMAGE_MODEL, tensor)


def _logits(model: str, tensor: dict[str, Any]) -> Any:
    body = {"inputs": [tensor], "outputs": [{"name": "logits"}]}
    (output,) = post(f"/v2/models/{model}/infer", json.dumps(body).encode())["outputs"]
    return np.array(output["data"]).reshape(output["shape"])


def labels_of(model: str) -> list[str]:
    """The model's labels, in the order of its logits."""
    with urllib.request.urlopen(f"http://{URL}/v2/models/{model}/config", timeout=60) as answer:
        labels: list[str] = json.loads(answer.read())["labels"]
    return labels


def ranking(model: str, logits: Any) -> list[tuple[str, float]]:
    """The labels of one item with their softmax, the best first."""
    raised = np.exp(logits - logits.max())
    pairs = zip(labels_of(model), (raised / raised.sum()).tolist(), strict=True)
    return sorted(pairs, key=lambda pair: -pair[1])


def same(found: Any, right: Any) -> str:
    """Say how near the found numbers are to the right ones. Raises `AssertionError` if they are not equal."""
    found, right = np.asarray(found, np.float64), np.asarray(right, np.float64)
    assert found.shape == right.shape, f"shape {found.shape}, not {right.shape}"
    off = float(np.abs(found - right).max())
    assert off < 1e-4, f"off by {off:.3g}"
    return f"{found.shape[0]} answers, equal"


def same_ranking(found: list[tuple[str, float]], right: list[tuple[str, float]]) -> str:
    """The same of labels and scores."""
    assert [label for label, _ in found] == [label for label, _ in right], f"{found} is not {right}"
    return same([score for _, score in found], [score for _, score in right])


def refused(call: Callable[[], Any], *words: str) -> str:
    """Say how a call was refused. Raises `AssertionError` if it was answered, or a word is missing."""
    try:
        answer = call()
    except Exception as error:  # noqa: BLE001  each client has its own
        told = str(error)
        missing = [word for word in words if word not in told]
        assert not missing, f"refused, but without {missing}: {told[:200]}"
        return f"refused: {told[:120]}"
    raise AssertionError(f"answered: {answer!r:.200}")
