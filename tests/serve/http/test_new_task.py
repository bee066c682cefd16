"""A task that is not built in, in this file alone, is served over every protocol: rows of numbers, summed."""

import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import httpx
import numpy as np
import pytest
from pydantic import Field

from fewshard_core.values import Input, ModelInfo
from fewshard_serve.core import Caller, Classified, PredictionRequest, Timings
from fewshard_serve.errors import ConfigError, MalformedRequest, UnusableItem
from fewshard_serve.http.host import HostApp
from fewshard_serve.http.openapi import openapi_document
from fewshard_serve.protocol.inputs import check_num_items
from fewshard_serve.protocol.limits import Limits
from fewshard_serve.protocol.stats import ModelStatistics
from fewshard_serve.protocol.tasks import TASKS, InputTensor, Task
from fewshard_serve.protocol.tensors import Tensor
from local_service import LocalService

Call = Callable[..., httpx.Response]
LENGTH = "inference-header-content-length"
LIMITS = Limits(max_items=4)


@dataclass(frozen=True, slots=True)
class Row(Input):
    numbers: tuple[float, ...]


class TableTask(Task):
    name = "table"
    plural = "rows of numbers"
    architecture = "ForTableClassification"

    json_types = (Annotated[list[float], Field(fail_fast=True)],)
    json_help = "a row is a list of numbers"
    json_refusal = "a table model takes rows, which are lists of numbers"
    values_per_item = 100

    media_range = "text/csv"
    file_help = "one row as text/csv"
    body_refusal = "classifies rows of numbers; send one row as text/csv, or JSON"

    tensors = (InputTensor("row", "FP32", (-1, -1), "a row of numbers for each item"),)

    def json_items(self, inputs: Any) -> list[Any]:
        is_one_row = isinstance(inputs, list) and inputs and isinstance(inputs[0], float)
        return [inputs] if is_one_row else super().json_items(inputs)

    def from_json(self, index: int, item: list[float], limits: Limits) -> Row:
        return _row(index, item)

    def from_tensors(self, inputs: Mapping[str, Tensor], limits: Limits) -> list[Input]:
        tensor = inputs["row"]
        if tensor.datatype != "FP32" or tensor.data.ndim != 2:
            raise MalformedRequest(f"row must be FP32 [N,F], not {tensor.datatype} {list(tensor.shape)}")
        check_num_items(len(tensor.data), limits)
        return [_row(index, numbers) for index, numbers in enumerate(tensor.data.tolist())]

    def from_bytes(self, raw: bytes, limits: Limits) -> Row:
        try:
            return _row(0, [float(cell) for cell in raw.split(b",")])
        except ValueError:
            raise UnusableItem(0, "a row is numbers with commas between them") from None

    def sample_call(self, url: str) -> str:
        return f"curl {url} -d '{{\"inputs\": [[1.0, 2.0]]}}'"


def _row(index: int, numbers: Sequence[float]) -> Row:
    if not all(map(math.isfinite, numbers)):
        raise UnusableItem(index, "the row holds NaN or infinity; send finite numbers")
    return Row(tuple(numbers))


class Summing:
    """The logit of "big" is the row's sum, that of "small" 0."""

    room = None
    ready = True
    not_ready_reason = ""

    def __init__(self, name: str = "sums", task: str = "table") -> None:
        kind = "single_label_classification"
        self.info = ModelInfo(name, task, "dense", ("small", "big"), kind, "Sum", "fp32", "cpu", 0)
        self.stats = ModelStatistics()

    def check_room(self, caller: Caller) -> None:
        pass

    async def classify(self, request: PredictionRequest) -> Classified:
        inputs = request.inputs
        assert all(isinstance(each, Row) for each in inputs)
        logits = np.array([[0.0, sum(row.numbers)] for row in inputs if isinstance(row, Row)], np.float32)
        return Classified(logits, 0, Timings(0.0, 0.0, 0.0))

    def experts(self) -> None:
        return None


@pytest.fixture
def app() -> Iterator[HostApp]:
    TASKS.register(TableTask())
    served = {"sums": Summing(), "words": Summing("words", "text"), "photos": Summing("photos", "image")}
    yield HostApp(LocalService(served), limits=LIMITS)
    TASKS.unregister("table")


def classify(app: HostApp, call: Call, inputs: object, model: str = "sums") -> httpx.Response:
    body = json.dumps({"inputs": inputs, "raw_scores": True})
    return call(app, "POST", f"/v2/models/{model}/classify", content=body)


def best(response: httpx.Response) -> list[tuple[str, float]]:
    assert response.status_code == 200, response.text
    return [(labels[0]["label"], labels[0]["score"]) for labels in response.json()["predictions"]]


@pytest.mark.parametrize(
    ("inputs", "expected"),
    [
        ([[1.5, 2], [-3.0, 1.0]], [("big", 3.5), ("small", 0.0)]),
        ([[1.5, 2.0]], [("big", 3.5)]),
        ([1.5, 2], [("big", 3.5)]),
        ([[1.0] * 100], [("big", 100.0)]),
    ],
)
def test_rows_are_lists_of_numbers(app: HostApp, call: Call, inputs: object, expected: list[Any]) -> None:
    assert best(classify(app, call, inputs)) == expected


def test_a_row_may_be_the_body(app: HostApp, call: Call) -> None:
    headers = {"content-type": "text/csv"}
    path = "/v2/models/sums/classify?raw_scores=true"
    assert best(call(app, "POST", path, content=b"1,2.5", headers=headers)) == [("big", 3.5)]
    refused = call(app, "POST", "/v2/models/photos/classify", content=b"1", headers=headers)
    assert refused.status_code == 415
    assert refused.json()["error"].startswith("photos classifies images; send")
    image = call(app, "POST", path, content=b"PNG", headers={"content-type": "image/png"})
    assert (image.status_code, image.json()["error"]) == (415, f"sums {TableTask.body_refusal}")


def test_infer_in_json(app: HostApp, call: Call) -> None:
    tensor = {"name": "row", "datatype": "FP32", "shape": [2, 2], "data": [1.0, 2.0, -1.0, 0.5]}
    answer = call(app, "POST", "/v2/models/sums/infer", content=json.dumps({"inputs": [tensor]})).json()
    outputs = {output["name"]: output["data"] for output in answer["outputs"]}
    assert (outputs["label"], outputs["logits"]) == (["big", "small"], [0.0, 3.0, 0.0, -0.5])


def test_infer_in_binary(app: HostApp, call: Call) -> None:
    rows = np.array([[1.0, 2.0, 4.0], [-1.0, 0.5, 0.0]], "<f4").tobytes()
    tensor = {
        "name": "row",
        "datatype": "FP32",
        "shape": [2, 3],
        "parameters": {"binary_data_size": len(rows)},
    }
    output = {"name": "logits", "parameters": {"binary_data": True}}
    head = json.dumps({"inputs": [tensor], "outputs": [output]}).encode()
    response = call(
        app, "POST", "/v2/models/sums/infer", content=head + rows, headers={LENGTH: str(len(head))}
    )
    logits = np.frombuffer(response.content[int(response.headers[LENGTH]) :], "<f4")
    assert logits.tolist() == [0.0, 7.0, 0.0, -0.5]


def test_infer_of_one_raw_row(app: HostApp, call: Call) -> None:
    response = call(app, "POST", "/v2/models/sums/infer", content=b"3,4", headers={LENGTH: "0"})
    assert response.status_code == 200
    assert b"big" in response.content


def test_metadata_and_config(app: HostApp, call: Call) -> None:
    metadata = call(app, "GET", "/v2/models/sums").json()
    assert metadata["inputs"] == [{"name": "row", "datatype": "FP32", "shape": [-1, -1]}]
    config = call(app, "GET", "/v2/models/sums/config").json()
    assert config["task"] == "table"
    assert config["inputs"] == [{**metadata["inputs"][0], "use": "a row of numbers for each item"}]


@pytest.mark.parametrize(
    ("model", "inputs", "status", "message"),
    [
        ("sums", "a text", 400, f"item 0: {TableTask.json_refusal}"),
        ("sums", [[1.0], "a text"], 400, f"item 1: {TableTask.json_refusal}"),
        ("sums", {"text": "a", "text_pair": "b"}, 400, f"item 0: {TableTask.json_refusal}"),
        ("sums", [], 400, "the request has no items; send at least one"),
        ("sums", [[[1.0]]], 400, "item 0 cannot be read: inputs must be a text"),
        ("sums", [[1.0, None]], 400, "item 0 cannot be read: inputs must be a text"),
        ("sums", [[1.0]] * 5, 413, "the request has 5 items, at most 4"),
        ("words", [[1.0]], 400, 'item 0: a text model takes strings or {"text", "text_pair"}'),
        ("photos", [[1.0]], 400, "item 0: an image model takes base64 strings or data URLs, not texts"),
    ],
)
def test_what_is_of_another_task_is_refused(
    app: HostApp, call: Call, model: str, inputs: object, status: int, message: str
) -> None:
    response = classify(app, call, inputs, model)
    assert (response.status_code, response.json()["error"][: len(message)]) == (status, message)


def test_the_help_tells_of_the_task(app: HostApp, call: Call) -> None:
    assert classify(app, call, None).json()["error"].endswith("; a row is a list of numbers")


@pytest.mark.parametrize(
    ("name", "datatype", "shape", "message"),
    [
        ("row", "FP32", [4], "row must be FP32 [N,F], not FP32 [4]"),
        ("row", "FP32", [2, 2, 1], "row must be FP32 [N,F], not FP32 [2, 2, 1]"),
        ("row", "FP64", [2, 2], "row must be FP32 [N,F], not FP64 [2, 2]"),
        ("text", "FP32", [2, 2], "sums takes no input 'text'; known are: row"),
    ],
)
def test_tensors_of_another_shape_are_malformed(
    app: HostApp, call: Call, name: str, datatype: str, shape: list[int], message: str
) -> None:
    tensor = {"name": name, "datatype": datatype, "shape": shape, "data": [1.0] * 4}
    response = call(app, "POST", "/v2/models/sums/infer", content=json.dumps({"inputs": [tensor]}))
    assert (response.status_code, response.json()["error"]) == (400, message)


@pytest.mark.parametrize(
    ("action", "advice"),
    [
        ("predict", "POST them to /v2/models/sums/classify"),
        ("explain", "only words of a text can be explained"),
    ],
)
def test_clients_that_know_texts_alone_are_told_so(
    app: HostApp, call: Call, action: str, advice: str
) -> None:
    response = call(app, "POST", f"/v2/models/sums/{action}", content=b'{"inputs": "a text"}')
    assert (response.status_code, response.json()["error"]) == (
        415,
        f"sums classifies rows of numbers; {advice}",
    )


def test_the_openapi_document_grows_and_shrinks_with_the_tasks() -> None:
    before = openapi_document(LIMITS)
    TASKS.register(TableTask())
    try:
        after = openapi_document(LIMITS)
    finally:
        TASKS.unregister("table")
    row = {"items": {"type": "number"}, "type": "array"}
    schemas = after["components"]["schemas"]
    for body in ("ClassifyRequest", "GatewayClassifyRequest"):
        assert row in schemas[body]["properties"]["inputs"]["anyOf"]
    content = after["paths"]["/classify"]["post"]["requestBody"]["content"]
    assert set(content) == {"application/json", "image/*", "text/csv"}
    assert openapi_document(LIMITS) == before


def test_a_task_that_nobody_knows_is_told_from_those_there_are() -> None:
    with pytest.raises(ConfigError, match="there is no task 'audio'; there are: text, image, tokens"):
        TASKS.get("audio")
    with pytest.raises(ValueError, match="there is a task 'text' already"):
        TASKS.register(TASKS.get("text"))
