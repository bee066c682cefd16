"""Tensors of the Open Inference Protocol V2: their data types, and their JSON and binary forms.

`oip` and `rpc.convert` use it for whole requests. NumPy has no bfloat16, so BF16 tensors are held as float32.
"""

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fewshard_serve.errors import MalformedRequest
from fewshard_serve.protocol.json_guard import nearest, quoted

NUMPY_DTYPES: dict[str, np.dtype[Any]] = {
    "BOOL": np.dtype("?"),
    "UINT8": np.dtype("u1"),
    "UINT16": np.dtype("<u2"),
    "UINT32": np.dtype("<u4"),
    "UINT64": np.dtype("<u8"),
    "INT8": np.dtype("i1"),
    "INT16": np.dtype("<i2"),
    "INT32": np.dtype("<i4"),
    "INT64": np.dtype("<i8"),
    "FP16": np.dtype("<f2"),
    "FP32": np.dtype("<f4"),
    "FP64": np.dtype("<f8"),
    "BF16": np.dtype("<f4"),
    "BYTES": np.dtype(object),
}
"""The NumPy type that holds a tensor of each V2 data type."""

_STEP = 16_384
"""Values that are looked at in one go. Between two, other threads may have the interpreter."""
_LENGTH = struct.Struct("<I")
_JSON_TYPES: dict[str, set[type]] = {"b": {bool}, "u": {int}, "i": {int}, "f": {int, float}, "O": {str}}
_JSON_WORDS = {
    "b": "true or false",
    "u": "whole numbers",
    "i": "whole numbers",
    "f": "numbers",
    "O": "strings",
}


@dataclass(frozen=True, slots=True)
class Tensor:
    """A tensor of a V2 message.

    datatype: the V2 name of its type.
    data: has the tensor's shape. Elements of BYTES are `bytes` if read from binary data, `str` from JSON.
    """

    name: str
    datatype: str
    data: NDArray[Any]

    @property
    def shape(self) -> tuple[int, ...]:
        return self.data.shape


def bytes_tensor(name: str, elements: Sequence[str | bytes], shape: Sequence[int]) -> Tensor:
    """A BYTES tensor of these elements, which must be in row-major order."""
    flat = np.empty(len(elements), dtype=object)
    flat[:] = elements
    return Tensor(name, "BYTES", flat.reshape(shape))


def check_datatype(name: str, datatype: object) -> str:
    """Return `datatype`. Raises `MalformedRequest` if it is not a V2 data type."""
    if not isinstance(datatype, str) or datatype not in NUMPY_DTYPES:
        hint = nearest(str(datatype), NUMPY_DTYPES)
        raise MalformedRequest(f"tensor {quoted(name)}: unknown datatype {quoted(datatype)}; {hint}")
    return datatype


def decode_binary(name: str, datatype: str, shape: tuple[int, ...], raw: memoryview) -> Tensor:
    """Read a tensor from its little-endian, row-major bytes; only BOOL, BF16 and BYTES are copied.

    Raises `MalformedRequest` if the number of bytes does not match the shape.
    """
    if datatype == "BYTES":
        return bytes_tensor(name, _split_elements(name, prod(shape), raw), shape)
    wire = _wire_dtype(datatype)
    if prod(shape) * wire.itemsize != len(raw):
        raise MalformedRequest(
            f"tensor {quoted(name)}: {datatype} {list(shape)} takes {prod(shape) * wire.itemsize} bytes, "
            f"binary_data_size says {len(raw)}"
        )
    return Tensor(name, datatype, _from_wire(datatype, np.frombuffer(raw, dtype=wire)).reshape(shape))


def encode_binary(tensor: Tensor) -> bytes:
    """Write a tensor as the bytes that `decode_binary` reads."""
    if tensor.datatype == "BYTES":
        return b"".join(_length_prefixed(element) for element in tensor.data.ravel())
    if tensor.datatype == "BF16":
        return _round_to_bf16(tensor.data).tobytes()
    return tensor.data.astype(NUMPY_DTYPES[tensor.datatype], copy=False).tobytes()


def decode_json(name: str, datatype: str, shape: tuple[int, ...], data: object) -> Tensor:
    """Read a tensor from JSON data, which is nested like its shape or flat in row-major order.

    Raises `MalformedRequest` for a wrong type, a number out of range, or data that does not match the shape.
    """
    if not isinstance(data, list):
        raise MalformedRequest(f"tensor {quoted(name)}: data must be a list")
    dtype = NUMPY_DTYPES[datatype]
    values = _flatten(name, shape, data)
    if not _types_of(values) <= _JSON_TYPES[dtype.kind]:
        raise MalformedRequest(f"tensor {quoted(name)}: data of {datatype} must be {_JSON_WORDS[dtype.kind]}")
    if datatype == "BYTES":
        return bytes_tensor(name, values, shape)
    try:
        with np.errstate(over="ignore"):  # becomes inf; the task reports it with the item's index
            return Tensor(name, datatype, _array(values, dtype).reshape(shape))
    except OverflowError as error:
        raise MalformedRequest(f"tensor {quoted(name)}: a value does not fit {datatype}: {error}") from None


def _types_of(values: list[Any]) -> set[type]:
    kinds: set[type] = set()
    for start in range(0, len(values), _STEP):
        kinds.update(map(type, values[start : start + _STEP]))
    return kinds


def _array(values: list[Any], dtype: np.dtype[Any]) -> NDArray[Any]:
    array = np.empty(len(values), dtype)
    for start in range(0, len(values), _STEP):
        array[start : start + _STEP] = values[start : start + _STEP]
    return array


def json_values(tensor: Tensor) -> list[Any]:
    """The data of a tensor for JSON: a flat list in row-major order."""
    flat: list[Any] = tensor.data.ravel().tolist()
    if tensor.datatype == "BYTES":
        return [each.decode() if isinstance(each, bytes) else each for each in flat]
    return flat


def _wire_dtype(datatype: str) -> np.dtype[Any]:
    if datatype == "BF16":
        return np.dtype("<u2")
    return np.dtype("u1") if datatype == "BOOL" else NUMPY_DTYPES[datatype]


def _from_wire(datatype: str, wire: NDArray[Any]) -> NDArray[Any]:
    if datatype == "BF16":
        return (wire.astype(np.uint32) << 16).view(np.float32)
    return wire != 0 if datatype == "BOOL" else wire


def _round_to_bf16(values: NDArray[Any]) -> NDArray[np.uint16]:
    """The upper halves of float32 values, rounded to nearest even. NaN stays NaN."""
    bits = np.ascontiguousarray(values, dtype=np.float32).view(np.uint32)
    rounded = (bits + (((bits >> 16) & 1) + np.uint32(0x7FFF))) >> 16
    quiet_nan = (bits >> 16) | np.uint32(0x40)
    return np.where(np.isnan(values), quiet_nan, rounded).astype("<u2")


def _length_prefixed(element: str | bytes) -> bytes:
    raw = element.encode() if isinstance(element, str) else element
    return _LENGTH.pack(len(raw)) + raw


def _split_elements(name: str, num_elements: int, raw: memoryview) -> list[bytes]:
    elements, offset = [], 0
    for _ in range(num_elements):  # a count that is too large fails at the end of the bytes
        if offset + _LENGTH.size > len(raw):
            raise _bytes_do_not_fill(name, num_elements)
        start = offset + _LENGTH.size
        offset = start + _LENGTH.unpack_from(raw, offset)[0]
        elements.append(bytes(raw[start:offset]))
    if offset != len(raw):  # also catches an element whose length exceeds the data
        raise _bytes_do_not_fill(name, num_elements)
    return elements


def _bytes_do_not_fill(name: str, num_elements: int) -> MalformedRequest:
    return MalformedRequest(
        f"tensor {quoted(name)}: its binary data is not {num_elements} elements of BYTES, each a "
        "little-endian uint32 length and that many bytes"
    )


def _flatten(name: str, shape: tuple[int, ...], data: list[Any]) -> list[Any]:
    lengths = [len(data)]
    while data and all(type(row) is list for row in data):
        row_lengths = set(map(len, data))
        if len(row_lengths) > 1:
            raise MalformedRequest(f"tensor {quoted(name)}: the lists in data differ in length")
        lengths.append(row_lengths.pop())
        rows, data = data, []
        for row in rows:
            data += row
    if len(data) != prod(shape) or (len(lengths) > 1 and tuple(lengths) != shape):
        raise MalformedRequest(
            f"tensor {quoted(name)}: shape {list(shape)} does not fit data of shape {lengths}"
        )
    return data
