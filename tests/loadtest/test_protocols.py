"""What is sent in each protocol, and what is read from answers; the real server's tests check both ends."""

import json
import random
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from fewshard_loadtest import grpcwire
from fewshard_loadtest.errors import ScenarioError
from fewshard_loadtest.payloads import Payload
from fewshard_loadtest.protocols import PROTOCOLS
from fewshard_loadtest.tasks import TASKS, Task

TEXTS = Payload("t", ("a", "é"))
IMAGES = Payload("i", np.arange(2 * 4 * 4 * 3, dtype=np.uint8).reshape(2, 4, 4, 3), task="image")


def test_classify_sends_one_text_or_a_list() -> None:
    one = PROTOCOLS["classify"].body("m", TEXTS, [0])
    assert one.path == "/v2/models/m/classify"
    assert json.loads(one.body) == {"inputs": "a"}
    assert json.loads(PROTOCOLS["classify"].body("m", TEXTS, [0, 1]).body) == {"inputs": ["a", "é"]}


def test_json_is_a_v2_bytes_tensor() -> None:
    request = PROTOCOLS["json"].body("m", TEXTS, [0, 1])
    body = json.loads(request.body)
    assert request.path == "/v2/models/m/infer"
    assert body["inputs"] == [{"name": "text", "datatype": "BYTES", "shape": [2], "data": ["a", "é"]}]


def test_binary_carries_pixels_and_length_prefixed_texts() -> None:
    request = PROTOCOLS["binary"].body("m", IMAGES, [1])
    size = int(request.headers["Inference-Header-Content-Length"])
    (tensor,) = json.loads(request.body[:size])["inputs"]
    assert (tensor["datatype"], tensor["shape"]) == ("UINT8", [1, 4, 4, 3])
    assert request.body[size:] == IMAGES.items[1].tobytes()
    assert tensor["parameters"]["binary_data_size"] == len(request.body) - size
    assert PROTOCOLS["binary"].body("m", TEXTS, [1]).body.endswith(b"\x02\0\0\0\xc3\xa9")


def test_names_are_quoted_in_the_path() -> None:
    assert PROTOCOLS["classify"].body("a/b", TEXTS, [0]).path == "/v2/models/a%2Fb/classify"


def test_labels_are_read() -> None:
    classify = b'{"predictions": [[{"label": "x", "score": 0.9}, {"label": "y", "score": 0.1}]]}'
    assert PROTOCOLS["classify"].label(classify, {}) == "x"
    v2 = b'{"outputs": [{"name": "scores", "data": [1]}, {"name": "label", "data": ["x"]}]}'
    assert PROTOCOLS["json"].label(v2, {}) == "x"
    outputs = [
        {"name": "scores", "parameters": {"binary_data_size": 4}},
        {"name": "label", "parameters": {"binary_data_size": 6}},
    ]
    head = json.dumps({"outputs": outputs}).encode()
    body = head + b"1234" + b"\x02\0\0\0xy"
    assert PROTOCOLS["binary"].label(body, {"Inference-Header-Content-Length": str(len(head))}) == "xy"


@pytest.mark.parametrize("name", PROTOCOLS)
def test_an_answer_without_a_label_is_an_error(name: str) -> None:
    with pytest.raises((ValueError, LookupError)):
        PROTOCOLS[name].label(b"{}", {"Inference-Header-Content-Length": "2"})


def test_the_grpc_messages_are_those_of_the_protocol() -> None:
    """Held against tritonclient's generated classes."""
    from tritonclient.grpc import service_pb2

    request = service_pb2.ModelInferRequest()
    request.ParseFromString(PROTOCOLS["grpc"].body("a model", IMAGES, [0, 1]).body)
    assert request.model_name == "a model"
    (tensor,) = request.inputs
    assert (tensor.name, tensor.datatype, [*tensor.shape]) == ("image", "UINT8", [2, 4, 4, 3])
    assert [output.name for output in request.outputs] == ["scores", "label"]
    assert [*request.raw_input_contents] == [IMAGES.items.tobytes()]
    answer = service_pb2.ModelInferResponse(model_name="m", id="7")
    answer.outputs.add(name="scores", datatype="FP32", shape=[1, 300])
    answer.outputs.add(name="label", datatype="BYTES", shape=[1])
    answer.raw_output_contents.extend([b"\0" * 1200, b"\x02\0\0\0xy"])
    assert PROTOCOLS["grpc"].label(answer.SerializeToString(), {}) == "xy"


class RowTask(Task):
    tensor, datatype = "row", "FP32"

    def json_item(self, item: Any) -> list[float]:
        return [*map(float, item)]

    def shape(self, items: Sequence[Any]) -> list[int]:
        return [len(items), len(items[0])]

    def values(self, items: Sequence[Any]) -> list[float]:
        return [number for item in items for number in self.json_item(item)]

    def raw(self, items: Sequence[Any]) -> bytes:
        return np.array(items, "<f4").tobytes()


def test_a_new_task_is_sent_in_every_protocol(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(TASKS, "table", RowTask())
    rows = Payload("rows", ((1.0, 2.0), (3.0, 4.0)), task="table")
    sent = {name: protocol.body("m", rows, [0, 1]).body for name, protocol in PROTOCOLS.items()}
    assert json.loads(sent["classify"]) == {"inputs": [[1.0, 2.0], [3.0, 4.0]]}
    (tensor,) = json.loads(sent["json"])["inputs"]
    assert tensor == {"name": "row", "datatype": "FP32", "shape": [2, 2], "data": [1.0, 2.0, 3.0, 4.0]}
    raw = np.array([1, 2, 3, 4], "<f4").tobytes()
    assert sent["binary"].endswith(raw)
    assert raw in sent["grpc"]


def test_a_task_that_cannot_be_sent_is_told_from_those_that_can() -> None:
    with pytest.raises(ScenarioError, match="of task 'audio'; there are: text, image"):
        PROTOCOLS["classify"].body("m", Payload("sounds", (b"",), task="audio"), [0])


def test_damaged_grpc_answers_raise_value_errors_alone() -> None:
    rng = random.Random(0)
    for _ in range(2000):
        message = rng.randbytes(rng.randrange(40))
        with pytest.raises(ValueError):  # noqa: PT011
            grpcwire.raw_output(message, "label")
