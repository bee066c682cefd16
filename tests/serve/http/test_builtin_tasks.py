"""What the server says of text and image models, word by word: metadata, `/config`, and another's inputs."""

import json
from collections.abc import Callable
from typing import Any

import httpx
import pytest

from fewshard_serve.http.gateway import GatewayApp
from fewshard_serve.http.host import HostApp

Call = Callable[..., httpx.Response]

INPUTS: dict[str, list[dict[str, Any]]] = {
    "sst2": [
        {"name": "text", "datatype": "BYTES", "shape": [-1], "use": "the texts"},
        {"name": "text_pair", "datatype": "BYTES", "shape": [-1], "use": "optional: each text's second"},
    ],
    "cifar": [
        {"name": "image", "datatype": "UINT8", "shape": [-1, -1, -1, 3], "use": "RGB pixels"},
        {"name": "image", "datatype": "BYTES", "shape": [-1], "use": "image files"},
        {"name": "pixel_values", "datatype": "FP32", "shape": [-1, 3, -1, -1], "use": "normalised pixels"},
    ],
}
LABELS = {"sst2": ["negative", "positive"], "cifar": ["cat", "dog", "ship"]}
TASKS = {"sst2": "text", "cifar": "image"}
HELP = 'inputs must be a text, {"text", "text_pair"}, or a list of these; an image is a base64 string'
POST_THEM = "cifar classifies images; POST them to /v2/models/cifar/classify"


@pytest.mark.parametrize("model", ["sst2", "cifar"])
def test_metadata(host: HostApp, call: Call, model: str) -> None:
    first = INPUTS[model][0]
    width = len(LABELS[model])
    assert call(host, "GET", f"/v2/models/{model}").json() == {
        "name": model,
        "versions": ["1"],
        "platform": "fewshard",
        "inputs": [{"name": first["name"], "datatype": first["datatype"], "shape": first["shape"]}],
        "outputs": [
            {"name": "scores", "datatype": "FP32", "shape": [-1, width]},
            {"name": "logits", "datatype": "FP32", "shape": [-1, width]},
            {"name": "label", "datatype": "BYTES", "shape": [-1]},
        ],
    }


@pytest.mark.parametrize("model", ["sst2", "cifar"])
def test_config(host: HostApp, call: Call, model: str) -> None:
    body = call(host, "GET", f"/v2/models/{model}/config").json()
    for key in ("backend", "dynamic_batching", "input", "max_batch_size", "output", "platform"):
        del body[key]  # Triton's own, which test_other_addresses.py looks at
    assert body == {
        "name": model,
        "task": TASKS[model],
        "kind": "moe",
        "labels": LABELS[model],
        "problem_type": "single_label_classification",
        "architecture": "fake",
        "dtype": "fp32",
        "device": "cpu",
        "max_tokens": 128,
        "version": "1",
        "execution": {
            "dtype_reason": "",
            "num_threads": 0,
            "num_streams": 1,
            "threads_reason": "",
            "max_batch_tokens": 0,
            "engine": "torch",
            "engine_reason": "",
        },
        "thresholds": [],
        "card": {
            "accuracy": 0.914,
            "parameters_total": 4386178,
            "parameters_active": 1200000,
            "macs": 900000000.0,
        },
        "inputs": INPUTS[model],
        "limits": {
            "max_body_bytes": 200000,
            "max_items": 64,
            "max_text_bytes": 10000,
            "max_json_depth": 32,
            "max_image_pixels": 25000000,
            "max_body_s": 30.0,
            "max_retried_bytes": 65536,
        },
    }
    assert list(body)[-2:] == ["inputs", "limits"]


def tensor(name: str, datatype: str, shape: list[int], data: list[Any]) -> dict[str, Any]:
    return {"inputs": [{"name": name, "datatype": datatype, "shape": shape, "data": data}]}


@pytest.mark.parametrize(
    ("path", "body", "status", "message"),
    [
        ("cifar/predict", {"inputs": "a text"}, 415, POST_THEM),
        (
            "cifar/explain",
            {"inputs": "a text"},
            415,
            "cifar classifies images; only words of a text can be explained",
        ),
        (
            "cifar/classify",
            {"inputs": {"text": "a", "text_pair": "b"}},
            400,
            "item 0: an image model takes base64 strings or data URLs, not texts",
        ),
        (
            "cifar/classify",
            {"inputs": "a text"},
            422,
            "item 0: the image is not valid base64; send base64 or a data URL",
        ),
        ("cifar/classify", {"inputs": [1]}, 400, f"item 0 cannot be read: {HELP}"),
        ("sst2/classify", {"inputs": 1}, 400, HELP),
        ("sst2/classify", 1, 400, f"the body must be a JSON object; {HELP}"),
        (
            "sst2/infer",
            tensor("image", "BYTES", [1], ["x"]),
            400,
            "sst2 takes no input 'image'; known are: text, text_pair",
        ),
        (
            "cifar/infer",
            tensor("text", "BYTES", [1], ["x"]),
            400,
            "cifar takes no input 'text'; known are: image, pixel_values",
        ),
        (
            "sst2/infer",
            tensor("text_pair", "BYTES", [1], ["x"]),
            400,
            "the input `text` is missing; send BYTES of shape [N]",
        ),
        (
            "cifar/infer",
            tensor("image", "FP32", [1], [1.0]),
            400,
            "image must be UINT8 pixels or BYTES of image files, not FP32",
        ),
    ],
)
def test_inputs_of_another_task(
    host: HostApp, call: Call, path: str, body: object, status: int, message: str
) -> None:
    response = call(host, "POST", f"/v2/models/{path}", content=json.dumps(body))
    assert (response.status_code, response.json()["error"]) == (status, message)


@pytest.mark.parametrize(
    ("content_type", "message"),
    [
        ("image/png", 'sst2 classifies text; send JSON: {"inputs": "a text"}'),
        (
            "multipart/form-data; boundary=x",
            "forms are not read here; send JSON, or the image file itself as image/*",
        ),
    ],
)
def test_files_of_another_task(host: HostApp, call: Call, content_type: str, message: str) -> None:
    headers = {"content-type": content_type}
    response = call(host, "POST", "/v2/models/sst2/classify", content=b"x", headers=headers)
    assert (response.status_code, response.json()["error"]) == (415, message)


def test_the_gateway_says_the_same(gateway: GatewayApp, call: Call) -> None:
    png = {"content-type": "image/png"}
    asked = call(gateway, "POST", "/classify?model=sst2", content=b"x", headers=png)
    assert asked.json()["error"] == 'sst2 classifies text; send JSON: {"inputs": "a text"}'
    nameless = call(gateway, "POST", "/classify", content=b"x", headers=png)
    assert nameless.status_code == 400
    assert nameless.json()["error"] == (
        "name a model: `model` in the body, or ?model=<name>; there are: cifar, slow, sst2"
    )
    vllm = call(gateway, "POST", "/v1/classify", content=json.dumps({"model": "cifar", "input": "a"}))
    assert (vllm.status_code, vllm.json()["error"]["message"]) == (415, POST_THEM)
