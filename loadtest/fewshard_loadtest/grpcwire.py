"""Encoding of the two gRPC messages of the Open Inference Protocol that a load test needs.

Messages are written and read field by field: no generated code is needed, and building a request is cheap.
Source: kserve/open-inference-protocol, `ModelInferRequest` and `ModelInferResponse`.
"""

from collections.abc import Iterator, Sequence

INFER_METHOD = "/inference.GRPCInferenceService/ModelInfer"
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5


def infer_request(
    model: str, name: str, datatype: str, shape: Sequence[int], raw: bytes, outputs: Sequence[str]
) -> bytes:
    """A `ModelInferRequest` with one raw input tensor that requests the outputs named in `outputs`."""
    sizes = b"".join(_varint(size) for size in shape)
    tensor = _field(1, name.encode()) + _field(2, datatype.encode()) + _field(3, sizes)
    wanted = b"".join(_field(6, _field(1, output.encode())) for output in outputs)
    return _field(1, model.encode()) + _field(5, tensor) + wanted + _field(7, raw)


def raw_output(message: bytes, name: str) -> bytes:
    """The raw contents of one output of a `ModelInferResponse`. Raises ValueError if it is missing."""
    names, raws = [], []
    for number, value in fields(message):
        if number == 5:
            names.append(next((v.decode() for n, v in fields(value) if n == 1), ""))
        elif number == 6:
            raws.append(value)
    if name not in names or len(names) != len(raws):
        raise ValueError(f"the answer has no raw output {name!r}")
    return raws[names.index(name)]


def fields(message: bytes) -> Iterator[tuple[int, bytes]]:
    """Number and contents of each length-delimited field; skips others. Raises ValueError if truncated."""
    at = 0
    while at < len(message):
        key, at = _read_varint(message, at)
        number, kind = key >> 3, key & 7
        if kind == _VARINT:
            _, at = _read_varint(message, at)
            continue
        length, at = _read_varint(message, at) if kind == _BYTES else (_FIXED.get(kind, -1), at)
        if length < 0 or at + length > len(message):
            raise ValueError("the message is cut off or not a message")
        if kind == _BYTES:
            yield number, message[at : at + length]
        at += length


_FIXED = {_FIXED64: 8, _FIXED32: 4}


def _field(number: int, contents: bytes) -> bytes:
    return _varint(number << 3 | _BYTES) + _varint(len(contents)) + contents


def _varint(value: int) -> bytes:
    parts = bytearray()
    while value > 0x7F:
        parts.append(value & 0x7F | 0x80)
        value >>= 7
    parts.append(value)
    return bytes(parts)


def _read_varint(message: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while at < len(message):
        byte = message[at]
        value |= (byte & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if byte < 0x80:
            return value, at
    raise ValueError("the message is cut off")
