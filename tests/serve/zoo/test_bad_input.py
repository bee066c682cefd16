"""What strangers send, to the real server: a clear refusal that says what to do, and nothing lost."""

import base64
import io
import json
import shutil
import struct
import subprocess
import sys
import threading
import zlib
from pathlib import Path

import httpx
import numpy as np
import pytest
from PIL import Image

from fewshard_models.checkpoint import ZOO

pytestmark = pytest.mark.server

TEXT, IMAGE = "/v2/models/sst2-moe", "/v2/models/cifar10-dense"
FEWSHARD = str(Path(sys.executable).with_name("fewshard"))


def png(width: int = 32, height: int = 32) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.zeros((height, width, 3), np.uint8)).save(buffer, format="PNG")
    return buffer.getvalue()


def image_bomb() -> bytes:
    """A PNG of a few kilobytes that claims 60,000 x 60,000 pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(1_000_000))) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


def tensor(name: str, datatype: str, shape: list[int], data: list) -> bytes:
    return json.dumps(
        {"inputs": [{"name": name, "datatype": datatype, "shape": shape, "data": data}]}
    ).encode()


def nan_pixels() -> tuple[bytes, dict[str, str]]:
    pixels = np.zeros((3, 3, 32, 32), np.float32)
    pixels[1, 0, 5, 5] = np.nan
    entry = {"name": "pixel_values", "datatype": "FP32", "shape": [3, 3, 32, 32]}
    entry["parameters"] = {"binary_data_size": pixels.nbytes}
    header = json.dumps({"inputs": [entry]}).encode()
    return header + pixels.tobytes(), {"Inference-Header-Content-Length": str(len(header))}


def encoded(data: bytes) -> bytes:
    return json.dumps({"inputs": base64.b64encode(data).decode()}).encode()


def inputs(value) -> bytes:
    return json.dumps({"inputs": value}).encode()


CASES = {
    "malformed JSON": (f"{TEXT}/classify", b'{"inputs": "good', 400, "malformed", "JSON"),
    "not UTF-8": (f"{TEXT}/classify", b'{"inputs": "\xff\xfe"}', 400, "malformed", ""),
    "unknown key": (f"{TEXT}/classify", b'{"input": "good"}', 400, "malformed", "inputs"),
    "empty body": (f"{TEXT}/classify", b"", 400, "malformed", ""),
    "no inputs": (f"{TEXT}/classify", inputs([]), 400, "malformed", "at least one"),
    "a number for a text": (f"{TEXT}/classify", inputs(["good", 7]), 400, "malformed", "1"),
    "wrong dtype": (f"{TEXT}/infer", tensor("text", "FP32", [1], [1.0]), 400, "malformed", "BYTES"),
    "wrong shape": (f"{TEXT}/infer", tensor("text", "BYTES", [3], ["a", "b"]), 400, "malformed", "3"),
    "wrong tensor name": (f"{TEXT}/infer", tensor("words", "BYTES", [1], ["a"]), 400, "malformed", "text"),
    "wrong image shape": (f"{IMAGE}/infer", tensor("image", "UINT8", [2, 2], [1] * 4), 400, "malformed", ""),
    "10 MB of text": (f"{TEXT}/classify", inputs("good " * 2_000_000), 413, "too_large", "max_text_bytes"),
    "100,000 items": (f"{TEXT}/classify", inputs(["good"] * 100_000), 413, "too_large", "split the request"),
    "a body over the limit": (f"{TEXT}/classify", b" " * 34_000_000, 413, "too_large", ""),
    "not an image": (f"{IMAGE}/classify", encoded(b"hello " * 40), 422, "unusable_item", "item 0"),
    "a truncated PNG": (f"{IMAGE}/classify", encoded(png(64, 64)[:-40]), 422, "unusable_item", "cut short"),
    "an image bomb": (f"{IMAGE}/classify", encoded(image_bomb()), 422, "unusable_item", "pixels"),
    "a text for an image model": (f"{IMAGE}/classify", inputs("a cat!"), 422, "unusable_item", "item 0"),
    "an image for a text model": (f"{TEXT}/infer", tensor("image", "UINT8", [1], [1]), 400, "malformed", ""),
    "unknown model": ("/v2/models/sst3/classify", inputs("good"), 404, "unknown_model", "sst2-moe"),
    "unknown version": (f"{TEXT}/versions/9/infer", inputs("good"), 404, "not_found", "version"),
    "unknown path": ("/v3/models", b"", 404, "not_found", ""),
}


@pytest.mark.parametrize("case", CASES)
def test_refused_with_status_code_and_advice(zoo_url, case):
    path, body, status, code, phrase = CASES[case]
    response = httpx.post(f"{zoo_url}{path}", content=body, timeout=60)
    answer = response.json()
    assert (response.status_code, answer["code"]) == (status, code), answer
    assert phrase in answer["error"]
    assert len(answer["error"]) <= 1000


@pytest.mark.parametrize("path", ["/classify", "/", "/invocations"])
def test_what_the_door_admits_passes_between_gateway_and_replica(zoo_url, path):
    """Ray Serve's own limit between processes is 4 MiB. What is refused here was read by the replica."""
    body = b"\x89PNG" + bytes(5 * 2**20)
    response = httpx.post(f"{zoo_url}{path}?model=cifar10-dense", content=body, timeout=60)
    assert (response.status_code, response.json()["code"]) == (422, "unusable_item"), response.text


def test_pixels_that_are_not_numbers_name_their_item(zoo_url):
    body, headers = nan_pixels()
    response = httpx.post(f"{zoo_url}{IMAGE}/infer", content=body, headers=headers)
    assert response.status_code == 422
    assert "item 1" in response.json()["error"]


def test_wrong_verb_says_which_are_allowed(zoo_url):
    response = httpx.get(f"{zoo_url}{TEXT}/classify")
    assert response.status_code == 405
    assert response.headers["allow"] == "POST"


def test_a_bad_item_spoils_no_other_request(zoo_url):
    """Bad and good requests side by side, so that they share batches: every good one is answered."""
    bad = {"inputs": [base64.b64encode(data).decode() for data in (png(), b"rubbish", png())]}
    good = {"inputs": [base64.b64encode(png()).decode()] * 3}
    answers: dict[str, list[httpx.Response]] = {"good": [], "bad": []}

    def send(kind: str, body: dict) -> None:
        with httpx.Client(base_url=zoo_url, timeout=60) as http:
            answers[kind] += [http.post(f"{IMAGE}/classify", json=body) for _ in range(15)]

    threads = [threading.Thread(target=send, args=pair) for pair in [("good", good), ("bad", bad)] * 2]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [response.status_code for response in answers["good"]] == [200] * 30
    assert [response.status_code for response in answers["bad"]] == [422] * 30
    assert all(response.json()["error"].startswith("item 1:") for response in answers["bad"])
    first = answers["good"][0].json()["predictions"]
    assert all(
        response.json()["predictions"][0][0]["label"] == first[0][0]["label"] for response in answers["good"]
    )


def run_serve(config: str, folder: Path) -> subprocess.CompletedProcess:
    file = folder / "fewshard.yaml"
    file.write_text(config)
    return subprocess.run([FEWSHARD, "serve", str(file)], capture_output=True, text=True, timeout=150)


def test_config_with_a_typo_exits_2_naming_the_key(tmp_path):
    done = run_serve("models:\n  - name: m\n    path: zoo:sst2-moe\n    batchng: {max_items: 4}\n", tmp_path)
    assert done.returncode == 2
    assert "batchng" in done.stderr
    assert "did you mean 'batching'?" in done.stderr
    assert "Traceback" not in done.stderr


def test_port_in_use_exits_1_and_says_so(tmp_path, zoo_url):
    port = zoo_url.rsplit(":", 1)[1]
    done = run_serve(
        f"models: [{{name: m, path: 'zoo:sst2-moe'}}]\nserver: {{port: {port}, grpc_port: 0}}\n", tmp_path
    )
    assert done.returncode == 1
    assert port in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("damage", ["missing", "truncated", "wrong weights"])
def test_damaged_checkpoint_exits_1_and_says_which(tmp_path, damage):
    checkpoint = tmp_path / "checkpoint"
    if damage != "missing":
        shutil.copytree(ZOO / "sst2-moe", checkpoint)
        weights = checkpoint / "model.safetensors"
        data = bytearray(weights.read_bytes())
        if damage == "truncated":
            del data[-1000:]
        else:
            data[-40_000:] = bytes(40_000)
        weights.write_bytes(data)
    config = f"models: [{{name: m, path: {checkpoint}}}]\nserver: {{port: 18431, grpc_port: 0}}\n"
    done = run_serve(config, tmp_path)
    expected = {
        "missing": "no checkpoint directory",
        "truncated": "damaged",
        "wrong weights": "golden inputs wrongly",
    }
    assert done.returncode == 1
    assert expected[damage] in done.stderr
    assert "Traceback" not in done.stderr
