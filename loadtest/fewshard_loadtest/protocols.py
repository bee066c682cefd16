"""Fewshard's wire protocols: `/classify`, V2 in JSON and in binary, and gRPC; how to build requests and read
labels.

Does not import Locust. `users` sends the requests.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal
from urllib.parse import quote

from fewshard_loadtest import grpcwire
from fewshard_loadtest.payloads import Payload
from fewshard_loadtest.tasks import Task, task_named

Protocol = Literal["classify", "json", "binary", "grpc"]

JSON_HEADERS = {"Content-Type": "application/json"}
LENGTH_HEADER = "Inference-Header-Content-Length"
OUTPUTS = ("scores", "label")


@dataclass(frozen=True, slots=True)
class Request:
    """One request.

    path: path of the URL; empty for gRPC.
    headers: HTTP headers.
    body: HTTP body, or the gRPC message.
    expected: bytes that the response must contain; without them it counts as a failure, whatever its status.
    item: index of the request's first item in the payload; -1 if unknown.
    model: name of the model.
    """

    path: str
    headers: dict[str, str]
    body: bytes
    expected: bytes
    item: int = -1
    model: str = ""


@dataclass(frozen=True, slots=True)
class WireProtocol:
    """One protocol.

    body: builds a request from a model, a payload and the indices of its items.
    label: reads the best label of the first item from a response's body and headers; raises ValueError or
        LookupError if there is none.
    """

    body: Callable[[str, Payload, Sequence[int]], Request]
    label: Callable[[bytes, Mapping[str, str]], str]


def _path(model: str, verb: str) -> str:
    return f"/v2/models/{quote(model, safe='')}/{verb}"


def _json(value: object) -> bytes:
    return json.dumps(value, ensure_ascii=False).encode()


def _classify(model: str, payload: Payload, places: Sequence[int]) -> Request:
    task = task_named(payload.task)
    inputs = [task.json_item(item) for item in payload.at(places)]
    body = _json({"inputs": inputs[0] if len(inputs) == 1 else inputs})
    return Request(_path(model, "classify"), JSON_HEADERS, body, b'"predictions"')


def _v2_json(model: str, payload: Payload, places: Sequence[int]) -> Request:
    task, items = task_named(payload.task), payload.at(places)
    tensor = {**_tensor_head(task, items), "data": task.values(items)}
    body = _json({"inputs": [tensor], "outputs": [{"name": name} for name in OUTPUTS]})
    return Request(_path(model, "infer"), JSON_HEADERS, body, b'"outputs"')


def _v2_binary(model: str, payload: Payload, places: Sequence[int]) -> Request:
    task, items = task_named(payload.task), payload.at(places)
    raw = task.raw(items)
    tensor = {**_tensor_head(task, items), "parameters": {"binary_data_size": len(raw)}}
    outputs = [{"name": name, "parameters": {"binary_data": True}} for name in OUTPUTS]
    head = _json({"inputs": [tensor], "outputs": outputs})
    headers = {"Content-Type": "application/octet-stream", LENGTH_HEADER: str(len(head))}
    return Request(_path(model, "infer"), headers, head + raw, b'"outputs"')


def _grpc(model: str, payload: Payload, places: Sequence[int]) -> Request:
    task, items = task_named(payload.task), payload.at(places)
    raw = task.raw(items)
    body = grpcwire.infer_request(model, task.tensor, task.datatype, task.shape(items), raw, OUTPUTS)
    return Request("", {}, body, b"")


def _tensor_head(task: Task, items: Sequence[Any]) -> dict[str, Any]:
    return {"name": task.tensor, "datatype": task.datatype, "shape": task.shape(items)}


def first_of_bytes_tensor(raw: bytes) -> str:
    """The first element of a BYTES tensor."""
    length = int.from_bytes(raw[:4], "little")
    if len(raw) < 4 + length or len(raw) < 4:
        raise ValueError("the answer's labels are cut off")
    return raw[4 : 4 + length].decode()


def _classify_label(body: bytes, _: Mapping[str, str]) -> str:
    return str(json.loads(body)["predictions"][0][0]["label"])


def _json_label(body: bytes, _: Mapping[str, str]) -> str:
    outputs = {output["name"]: output for output in json.loads(body)["outputs"]}
    return str(outputs["label"]["data"][0])


def _binary_label(body: bytes, headers: Mapping[str, str]) -> str:
    start = int(headers[LENGTH_HEADER])
    for output in json.loads(body[:start])["outputs"]:
        if output["name"] == "label":
            return first_of_bytes_tensor(body[start:])
        start += int(output["parameters"]["binary_data_size"])
    raise ValueError("the answer has no output `label`")


def _grpc_label(body: bytes, _: Mapping[str, str]) -> str:
    return first_of_bytes_tensor(grpcwire.raw_output(body, "label"))


PROTOCOLS: dict[str, WireProtocol] = {
    "classify": WireProtocol(_classify, _classify_label),
    "json": WireProtocol(_v2_json, _json_label),
    "binary": WireProtocol(_v2_binary, _binary_label),
    "grpc": WireProtocol(_grpc, _grpc_label),
}
