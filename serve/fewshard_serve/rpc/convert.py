"""Converts gRPC messages to the V2 requests that HTTP also uses, and answers back to messages.

`rpc.inference` calls it.
"""

from collections.abc import Mapping, Sequence
from math import prod
from typing import Any

import numpy as np

from fewshard_core.values import ModelInfo
from fewshard_serve.core import Classified
from fewshard_serve.errors import MalformedRequest
from fewshard_serve.protocol import model_tensors, oip
from fewshard_serve.protocol.classify import timings_ms
from fewshard_serve.protocol.json_guard import quoted
from fewshard_serve.protocol.options import AnswerOptions
from fewshard_serve.protocol.parameters import (
    aggregation,
    check_input,
    check_request,
    decoded,
    flag,
    timeout_s,
)
from fewshard_serve.protocol.tensors import (
    NUMPY_DTYPES,
    Tensor,
    bytes_tensor,
    check_datatype,
    decode_binary,
    encode_binary,
)
from fewshard_serve.rpc.messages import CLASSES

CONTENTS = {
    "BOOL": "bool_contents",
    "INT8": "int_contents",
    "INT16": "int_contents",
    "INT32": "int_contents",
    "INT64": "int64_contents",
    "UINT8": "uint_contents",
    "UINT16": "uint_contents",
    "UINT32": "uint_contents",
    "UINT64": "uint64_contents",
    "FP32": "fp32_contents",
    "FP64": "fp64_contents",
    "BYTES": "bytes_contents",
}
"""The message field that holds a tensor's elements unless they are raw. FP16 and BF16 are always raw."""


def to_request(message: Any, expected: oip.Expected = oip.ANYTHING) -> oip.InferRequest:
    """Convert a `ModelInferRequest`. Raises `MalformedRequest`, and what `expected.look` raises."""
    parameters = _values(message.parameters)
    check_request(parameters)
    is_raw = len(message.raw_input_contents) > 0
    return oip.InferRequest(
        inputs=_inputs(message, expected),
        outputs=tuple(_requested(output, is_raw) for output in message.outputs),
        id=message.id,
        timeout_s=timeout_s(parameters),
        truncate=flag(parameters, "truncate", True),
        options=AnswerOptions(aggregation=aggregation(parameters)),
        is_binary_default=is_raw,
    )


def to_response(request: oip.InferRequest, info: ModelInfo, answer: Classified) -> Any:
    """Build a `ModelInferResponse`. Its tensors are raw if those of the request were, else typed."""
    outputs = [tensor for tensor, _ in model_tensors.to_outputs(request, info, answer)]
    response = CLASSES["ModelInferResponse"](
        model_name=info.name, model_version=info.version, id=request.id, outputs=map(_head, outputs)
    )
    response.parameters["tokens"].int64_param = answer.num_tokens
    for stage, spent_ms in timings_ms(answer).items():
        response.parameters[f"{stage}_ms"].double_param = spent_ms
    if answer.is_degraded:
        response.parameters["degraded"].bool_param = True
    if answer.stages:
        response.parameters["stages"].string_param = ",".join(answer.stages)
    if request.is_binary_default:
        response.raw_output_contents.extend(map(encode_binary, outputs))
    else:
        for head, tensor in zip(response.outputs, outputs, strict=True):
            getattr(head.contents, CONTENTS[tensor.datatype]).extend(_elements(tensor))
    return response


def to_metadata(info: ModelInfo, versions: Sequence[str]) -> Any:
    """Build a `ModelMetadataResponse`."""
    return CLASSES["ModelMetadataResponse"](**{**model_tensors.metadata(info), "versions": versions})


def _inputs(message: Any, expected: oip.Expected) -> dict[str, Tensor]:
    raws: Sequence[bytes] = message.raw_input_contents
    for entry in message.inputs:  # first, because a tensor in shared memory has no raw contents
        check_input(entry.name, _values(entry.parameters))
    if raws and len(raws) != len(message.inputs):
        raise MalformedRequest(
            f"raw_input_contents has {len(raws)} entries for {len(message.inputs)} inputs; send one for each"
        )
    tensors: dict[str, Tensor] = {}
    for index, entry in enumerate(message.inputs):
        tensor = _tensor(entry, raws[index] if raws else None, expected)
        tensor = decoded(tensor, _values(entry.parameters))
        if tensor.name in tensors:
            raise MalformedRequest(f"inputs has {quoted(tensor.name)} twice; name each tensor once")
        tensors[tensor.name] = tensor
    if not tensors:
        raise MalformedRequest("inputs is empty; send at least one tensor")
    return tensors


def _tensor(entry: Any, raw: bytes | None, expected: oip.Expected) -> Tensor:
    datatype = check_datatype(entry.name, entry.datatype)
    shape = oip.checked_shape(entry.name, list(entry.shape[: oip.MAX_RANK + 1]))
    expected.look(entry.name, datatype, shape)
    if raw is not None:
        if entry.contents.ByteSize():  # MLServer's client sets it, and leaves it empty
            raise MalformedRequest(
                f"input {quoted(entry.name)} has contents beside raw_input_contents; send one"
            )
        return decode_binary(entry.name, datatype, shape, memoryview(raw))
    if datatype not in CONTENTS:
        raise MalformedRequest(f"input {quoted(entry.name)}: {datatype} is taken as raw_input_contents alone")
    elements = getattr(entry.contents, CONTENTS[datatype])
    if len(elements) != prod(shape):
        raise MalformedRequest(
            f"input {quoted(entry.name)}: shape {list(shape)} does not fit {len(elements)} elements"
        )
    if datatype == "BYTES":
        return bytes_tensor(entry.name, elements, shape)
    try:
        numbers = np.fromiter(elements, NUMPY_DTYPES[datatype], len(elements))
    except OverflowError as error:
        raise MalformedRequest(
            f"input {quoted(entry.name)}: a value does not fit {datatype}: {error}"
        ) from None
    return Tensor(entry.name, datatype, numbers.reshape(shape))


def _requested(output: Any, is_raw: bool) -> oip.RequestedOutput:
    return oip.requested_output(output.name, _values(output.parameters), is_raw)


def _values(parameters: Mapping[str, Any]) -> dict[str, Any]:
    return {name: _value(parameter) for name, parameter in parameters.items()}


def _value(parameter: Any) -> Any:
    choice = parameter.WhichOneof("parameter_choice")
    return None if choice is None else getattr(parameter, choice)


def _head(tensor: Tensor) -> Any:
    return CLASSES["InferOutputTensor"](name=tensor.name, datatype=tensor.datatype, shape=tensor.shape)


def _elements(tensor: Tensor) -> list[Any]:
    flat = tensor.data.ravel()
    if tensor.datatype != "BYTES":
        numbers: list[Any] = flat.tolist()
        return numbers
    return [each.encode() if isinstance(each, str) else each for each in flat.tolist()]
