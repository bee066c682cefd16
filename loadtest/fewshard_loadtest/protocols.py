"""How Fewshard is asked, and where its answer names the label: `/classify`, V2 in JSON and in binary, gRPC.

No Locust in here; `users` sends what this makes.
"""

import base64
import io
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal
from urllib.parse import quote

import numpy as np
from numpy.typing import NDArray

from fewshard_loadtest import grpcwire
from fewshard_loadtest.payloads import Payload

Protocol = Literal["classify", "json", "binary", "grpc"]

JSON_HEADERS = {"Content-Type": "application/json"}
LENGTH_HEADER = "Inference-Header-Content-Length"
OUTPUTS = ("scores", "label")


@dataclass(frozen=True, slots=True)
class Request:
    """One request. An answer without the bytes `expected` counts as a failure, whatever its status.

    `item`: the place of its first item in the payload. Of gRPC `path` is empty and `body` the message.
    """

    path: str
    headers: dict[str, str]
    body: bytes
    expected: bytes
    item: int = -1
    model: str = ""


@dataclass(frozen=True, slots=True)
class WireProtocol:
    """One protocol. `body` makes a request of the items at some places of a payload; `label` reads the first
    item's best label from an answer's body and headers, and raises ValueError or LookupError of none."""

    body: Callable[[str, Payload, Sequence[int]], Request]
    label: Callable[[bytes, Mapping[str, str]], str]


def _path(model: str, verb: str) -> str:
    return f"/v2/models/{quote(model, safe='')}/{verb}"


def _json(value: object) -> bytes:
    return json.dumps(value, ensure_ascii=False).encode()


def _classify(model: str, payload: Payload, places: Sequence[int]) -> Request:
    if payload.images is None:
        inputs: list[str] = [payload.texts[place] for place in places]
    else:
        inputs = [_png_base64(payload.images[place]) for place in places]
    body = _json({"inputs": inputs[0] if len(inputs) == 1 else inputs})
    return Request(_path(model, "classify"), JSON_HEADERS, body, b'"predictions"')


def _png_base64(image: NDArray[np.uint8]) -> str:
    from PIL import Image

    file = io.BytesIO()
    Image.fromarray(image).save(file, "PNG")
    return base64.b64encode(file.getvalue()).decode()


def _v2_json(model: str, payload: Payload, places: Sequence[int]) -> Request:
    if payload.images is None:
        data: list[Any] = [payload.texts[place] for place in places]
    else:
        data = payload.images[list(places)].reshape(-1).tolist()
    tensor = {**_tensor_head(payload, len(places)), "data": data}
    body = _json({"inputs": [tensor], "outputs": [{"name": name} for name in OUTPUTS]})
    return Request(_path(model, "infer"), JSON_HEADERS, body, b'"outputs"')


def _v2_binary(model: str, payload: Payload, places: Sequence[int]) -> Request:
    raw = raw_tensor(payload, places)
    tensor = {**_tensor_head(payload, len(places)), "parameters": {"binary_data_size": len(raw)}}
    outputs = [{"name": name, "parameters": {"binary_data": True}} for name in OUTPUTS]
    head = _json({"inputs": [tensor], "outputs": outputs})
    headers = {"Content-Type": "application/octet-stream", LENGTH_HEADER: str(len(head))}
    return Request(_path(model, "infer"), headers, head + raw, b'"outputs"')


def _grpc(model: str, payload: Payload, places: Sequence[int]) -> Request:
    head = _tensor_head(payload, len(places))
    body = grpcwire.infer_request(
        model, head["name"], head["datatype"], head["shape"], raw_tensor(payload, places), OUTPUTS
    )
    return Request("", {}, body, b"")


def _tensor_head(payload: Payload, num_items: int) -> dict[str, Any]:
    if payload.images is None:
        return {"name": "text", "datatype": "BYTES", "shape": [num_items]}
    return {"name": "image", "datatype": "UINT8", "shape": [num_items, *payload.images.shape[1:]]}


def raw_tensor(payload: Payload, places: Sequence[int]) -> bytes:
    """The bytes of V2's binary form: pixels, or texts each after its length as a little-endian uint32."""
    if payload.images is not None:
        return payload.images[list(places)].tobytes()
    texts = [payload.texts[place].encode() for place in places]
    return b"".join(len(text).to_bytes(4, "little") + text for text in texts)


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
