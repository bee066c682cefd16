"""Reads and writes inference requests of the Open Inference Protocol V2, with Triton's binary extension.

It does not depend on a transport: the HTTP handlers pass the body and one header's value and get bytes back.
Specifications: kserve/open-inference-protocol `inference_rest.md`; Triton `extension_binary_data.md`.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from pydantic_core import to_json

from fewshard_serve.errors import MalformedRequest
from fewshard_serve.protocol.json_guard import MAX_VALUES, quoted, read_json
from fewshard_serve.protocol.limits import Limits
from fewshard_serve.protocol.options import AnswerOptions
from fewshard_serve.protocol.parameters import (
    aggregation,
    check_input,
    check_output,
    check_request,
    decoded,
    flag,
    given,
    timeout_s,
)
from fewshard_serve.protocol.tensors import (
    Tensor,
    check_datatype,
    decode_binary,
    decode_json,
    encode_binary,
    json_values,
)

MAX_RANK = 8


@dataclass(frozen=True, slots=True)
class RequestedOutput:
    """An output tensor that a request asks for.

    num_classes: if above 0, return this many best classes (Triton's classification extension).
    """

    name: str
    is_binary: bool
    num_classes: int = 0


@dataclass(frozen=True, slots=True)
class InferRequest:
    """A parsed inference request.

    inputs: the tensors by name.
    outputs: the requested outputs; empty for all.
    timeout_s: in seconds; None for no timeout.
    is_binary_default: whether outputs are sent as binary unless requested otherwise.
    raw: the whole body of a request without JSON (header value 0), which is one item of the model's first
        input; None for other requests.
    """

    inputs: Mapping[str, Tensor]
    outputs: tuple[RequestedOutput, ...] = ()
    id: str = ""
    timeout_s: float | None = None
    truncate: bool = True
    is_binary_default: bool = False
    raw: bytes | None = None
    options: AnswerOptions = AnswerOptions()  # noqa: RUF009  it is frozen


@dataclass(frozen=True, slots=True)
class Encoded:
    """A response body.

    json_size: the value of Inference-Header-Content-Length; None if there are no binary tensors.
    """

    body: bytes
    json_size: int | None


@dataclass(frozen=True, slots=True)
class InferResponse:
    """The fields of a response other than its tensors."""

    model: str
    version: str
    id: str = ""
    parameters: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Expected:
    """What a model takes, to refuse a request for another one before its data is read.

    look: called with the name, data type and shape of each input tensor; raises what the task would.
    max_json_values: the most values in the JSON of a request.
    """

    look: Callable[[str, str, tuple[int, ...]], None] = lambda name, datatype, shape: None
    max_json_values: int = MAX_VALUES


ANYTHING = Expected()


def parse_infer(
    body: bytes, json_size: str | None, limits: Limits, expected: Expected = ANYTHING
) -> InferRequest:
    """Parse a request.

    json_size: the value of the header Inference-Header-Content-Length; None if it is missing.

    Raises `MalformedRequest`, `TooLarge` if the JSON is nested too deeply or has too many values, and what
    `expected.look` raises.
    """
    size = _header_size(json_size, len(body))
    if size == 0:
        return InferRequest(inputs={}, is_binary_default=True, raw=body)
    text = body if size is None else body[:size]
    document = read_json(text, limits.max_json_depth, expected.max_json_values)
    if not isinstance(document, dict):
        raise MalformedRequest("the request must be a JSON object with `inputs`")
    tail = None if size is None else memoryview(body)[size:]
    parameters = _parameters(document, "the request")
    check_request(parameters)
    is_binary_default = flag(parameters, "binary_data_output", False)
    return InferRequest(
        inputs=_inputs(document, tail, expected),
        outputs=_outputs(document, is_binary_default),
        id=_text(given(document, "id", ""), "id"),
        timeout_s=timeout_s(parameters),
        truncate=flag(parameters, "truncate", True),
        options=AnswerOptions(aggregation=aggregation(parameters)),
        is_binary_default=is_binary_default,
    )


def encode_response(response: InferResponse, outputs: Sequence[tuple[Tensor, bool]]) -> Encoded:
    """Build the body of a response. `outputs`: tensors, each with whether it is sent as binary."""
    head: dict[str, Any] = {"model_name": response.model, "model_version": response.version}
    if response.id:
        head["id"] = response.id
    if response.parameters:
        head["parameters"] = response.parameters
    blobs = [encode_binary(tensor) if is_binary else None for tensor, is_binary in outputs]
    head["outputs"] = [_output_entry(tensor, blob) for (tensor, _), blob in zip(outputs, blobs, strict=True)]
    json_part = to_json(head)
    binary = [blob for blob in blobs if blob is not None]
    return Encoded(b"".join([json_part, *binary]), len(json_part) if binary else None)


def _output_entry(tensor: Tensor, blob: bytes | None) -> dict[str, Any]:
    entry = {"name": tensor.name, "datatype": tensor.datatype, "shape": list(tensor.shape)}
    if blob is None:
        return entry | {"data": json_values(tensor)}
    return entry | {"parameters": {"binary_data_size": len(blob)}}


def _header_size(value: str | None, num_bytes: int) -> int | None:
    if value is None:
        return None
    if not (value.isascii() and value.isdigit() and len(value) < 20):
        raise MalformedRequest(f"Inference-Header-Content-Length {quoted(value)} is not a number of bytes")
    if int(value) > num_bytes:
        raise MalformedRequest(
            f"Inference-Header-Content-Length says {value} bytes of JSON, the body has only {num_bytes}"
        )
    return int(value)


def _inputs(document: dict[str, Any], tail: memoryview | None, expected: Expected) -> dict[str, Tensor]:
    tensors: dict[str, Tensor] = {}
    for entry in _entries(document, "inputs"):
        tensor, tail = _input(entry, tail, expected)
        if tensor.name in tensors:
            raise MalformedRequest(f"inputs has {quoted(tensor.name)} twice; name each tensor once")
        tensors[tensor.name] = tensor
    if not tensors:
        raise MalformedRequest("inputs is missing or empty; send at least one tensor")
    if tail:
        raise MalformedRequest(f"the body has {len(tail)} bytes after its last binary tensor")
    return tensors


def _input(
    entry: dict[str, Any], tail: memoryview | None, expected: Expected
) -> tuple[Tensor, memoryview | None]:
    name = _text(entry.get("name"), "the name of an input")
    datatype = check_datatype(name, entry.get("datatype"))
    shape = checked_shape(name, entry.get("shape"))
    parameters = _parameters(entry, f"input {quoted(name)}")
    check_input(name, parameters)
    expected.look(name, datatype, shape)
    size = given(parameters, "binary_data_size", None)
    if size is None:
        return decoded(decode_json(name, datatype, shape, entry.get("data")), parameters), tail
    if given(entry, "data", None) is not None:
        raise MalformedRequest(f"input {quoted(name)} has both data and binary_data_size; send one")
    raw, rest = _cut(name, size, tail)
    return decoded(decode_binary(name, datatype, shape, raw), parameters), rest


def _cut(name: str, size: object, tail: memoryview | None) -> tuple[memoryview, memoryview]:
    if tail is None:
        raise MalformedRequest(
            f"input {quoted(name)} is binary, but the request has no Inference-Header-Content-Length"
        )
    if type(size) is not int or not 0 <= size <= len(tail):
        raise MalformedRequest(
            f"input {quoted(name)}: binary_data_size {quoted(size)} does not fit the {len(tail)} bytes left"
        )
    return tail[:size], tail[size:]


def checked_shape(name: str, shape: object) -> tuple[int, ...]:
    """Return a shape as a tuple. Raises `MalformedRequest` if it is not a valid shape."""
    if not isinstance(shape, list) or not all(type(dim) is int and 0 <= dim < 2**63 for dim in shape):
        raise MalformedRequest(f"input {quoted(name)}: shape must be a list of whole numbers, none negative")
    if len(shape) > MAX_RANK:
        raise MalformedRequest(f"input {quoted(name)}: shape has {len(shape)} dimensions, at most {MAX_RANK}")
    if not shape or 0 in shape:
        raise MalformedRequest(
            f"input {quoted(name)}: shape {quoted(shape)} holds no items; send at least one"
        )
    return tuple(shape)


def _outputs(document: dict[str, Any], is_binary_default: bool) -> tuple[RequestedOutput, ...]:
    outputs = tuple(_output(entry, is_binary_default) for entry in _entries(document, "outputs"))
    if len({output.name for output in outputs}) < len(outputs):
        raise MalformedRequest("outputs names a tensor twice; ask for each once")
    return outputs


def _output(entry: dict[str, Any], is_binary_default: bool) -> RequestedOutput:
    name = _text(entry.get("name"), "the name of an output")
    return requested_output(name, _parameters(entry, f"output {quoted(name)}"), is_binary_default)


def requested_output(name: str, parameters: dict[str, Any], is_binary_default: bool) -> RequestedOutput:
    """Parse the parameters of an output. Raises `MalformedRequest`."""
    check_output(name, parameters)
    num_classes = given(parameters, "classification", 0)
    if type(num_classes) is not int or num_classes < 0:
        raise MalformedRequest(f"output {quoted(name)}: classification must be a whole number of classes")
    return RequestedOutput(name, flag(parameters, "binary_data", is_binary_default), num_classes)


def _entries(document: dict[str, Any], key: str) -> list[dict[str, Any]]:
    entries = given(document, key, [])
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise MalformedRequest(f"{key} must be a list of objects")
    return entries


def _parameters(owner: dict[str, Any], what: str) -> dict[str, Any]:
    parameters = given(owner, "parameters", {})
    if not isinstance(parameters, dict):
        raise MalformedRequest(f"the parameters of {what} must be an object")
    return parameters


def _text(value: object, what: str) -> str:
    if not isinstance(value, str):
        raise MalformedRequest(f"{what} must be a string")
    return value
