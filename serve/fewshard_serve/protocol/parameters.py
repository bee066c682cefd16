"""The parameters of V2 requests and of their tensors: each is heard, or refused with the reason.

`oip` (HTTP) and `rpc.convert` (gRPC) use it. A null is an absent key, as many clients write it.
"""

import base64
import binascii
from collections.abc import Mapping
from typing import Any

from fewshard_models.classifier.entities import AGGREGATIONS
from fewshard_serve.errors import MalformedRequest
from fewshard_serve.protocol.json_guard import nearest, quoted
from fewshard_serve.protocol.tensors import Tensor, bytes_tensor

_OF_REQUEST = ("aggregation", "binary_data_output", "content_type", "timeout", "truncate")
_OF_INPUT = ("binary_data_size", "content_type")
_OF_OUTPUT = ("binary_data", "classification", "content_type")

_CONTENT_TYPES = ("np", "str")
"""What MLServer's codecs write: how an array or a list of strings became the tensor."""

_REASONS = {
    "shared_memory_region": "shared memory is not offered; send the data in the body",
    "sequence_id": "there are no sequences here; each request stands for itself",
    "priority": "send the header X-Request-Priority: high in its place",
}
_COMPANIONS = (
    *("shared_memory_byte_size", "shared_memory_offset", "sequence_start", "sequence_end"),
    "triton_enable_empty_final_response",
)
"""They say nothing without the parameter that is refused; the last one, where a request has one answer."""


def given(owner: Mapping[str, Any], key: str, default: Any) -> Any:
    """The value of a key, or `default` if the key is absent or null."""
    value = owner.get(key)
    return default if value is None else value


def check_request(parameters: Mapping[str, Any]) -> None:
    """Raise `MalformedRequest` for a parameter of a request that would not be heard."""
    _check(parameters, "the request", _OF_REQUEST, _CONTENT_TYPES)


def check_input(name: str, parameters: Mapping[str, Any]) -> None:
    """Raise `MalformedRequest` for a parameter of an input tensor that would not be heard."""
    _check(parameters, f"input {quoted(name)}", _OF_INPUT, ("base64", *_CONTENT_TYPES))


def check_output(name: str, parameters: Mapping[str, Any]) -> None:
    """Raise `MalformedRequest` for a parameter of a requested output that would not be heard."""
    _check(parameters, f"output {quoted(name)}", _OF_OUTPUT, _CONTENT_TYPES)


def decoded(tensor: Tensor, parameters: Mapping[str, Any]) -> Tensor:
    """The tensor, with its elements decoded if its content type is base64."""
    if given(parameters, "content_type", "") != "base64" or tensor.datatype != "BYTES":
        return tensor
    try:
        elements = [base64.b64decode(each, validate=True) for each in tensor.data.ravel()]
    except (binascii.Error, ValueError):
        raise MalformedRequest(
            f"input {quoted(tensor.name)}: its content_type is base64, its elements are not"
        ) from None
    return bytes_tensor(tensor.name, elements, tensor.shape)


def flag(parameters: Mapping[str, Any], key: str, default: bool) -> bool:
    """The value of a boolean parameter. Raises `MalformedRequest`."""
    value = given(parameters, key, default)
    if not isinstance(value, bool):
        raise MalformedRequest(f"parameter {key} must be true or false")
    return value


def aggregation(parameters: Mapping[str, Any]) -> str | None:
    """How the tokens of a text are joined; None if the request does not say. Raises `MalformedRequest`."""
    value = given(parameters, "aggregation", None)
    if value is not None and value not in AGGREGATIONS:
        raise MalformedRequest(f"parameter aggregation {quoted(value)}; {nearest(str(value), AGGREGATIONS)}")
    found: str | None = value
    return found


def timeout_s(parameters: Mapping[str, Any]) -> float | None:
    """The timeout in seconds, from microseconds. As in Triton, 0 means none. Raises `MalformedRequest`."""
    value = given(parameters, "timeout", 0)
    if type(value) is not int or not 0 <= value < 2**63:
        raise MalformedRequest("parameter timeout must be a whole number of microseconds")
    return value / 1e6 or None


def _check(parameters: Mapping[str, Any], what: str, known: tuple[str, ...], types: tuple[str, ...]) -> None:
    for key, value in parameters.items():
        if key in known or value is None:
            continue
        if key in _REASONS and value:  # else it is 0, false or "", which asks for nothing
            raise MalformedRequest(f"{what}: {_REASONS[key]}")
        if key not in (*_REASONS, *_COMPANIONS):
            raise MalformedRequest(f"{what} has an unknown parameter {quoted(key)}; {nearest(key, known)}")
    kind = given(parameters, "content_type", "str")
    if kind not in types:
        raise MalformedRequest(
            f"{what}: content_type {quoted(kind)} is not read; {nearest(str(kind), types)}"
        )
