"""Tensors of V2: every data type there and back in both forms, and every lie about sizes."""

import struct
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from fewshard_serve.errors import MalformedRequest
from fewshard_serve.protocol.tensors import (
    NUMPY_DTYPES,
    Tensor,
    bytes_tensor,
    check_datatype,
    decode_binary,
    decode_json,
    encode_binary,
    json_values,
)

NUMERIC = sorted(set(NUMPY_DTYPES) - {"BYTES", "BF16"})
SHAPES = hnp.array_shapes(min_dims=1, max_dims=4, max_side=5)


def there_and_back(tensor: Tensor) -> Tensor:
    return decode_binary(tensor.name, tensor.datatype, tensor.shape, memoryview(encode_binary(tensor)))


@pytest.mark.parametrize("datatype", NUMERIC)
@given(data=st.data())
def test_numbers_survive_binary_bit_by_bit(datatype: str, data: st.DataObject) -> None:
    values = data.draw(hnp.arrays(NUMPY_DTYPES[datatype], SHAPES))
    back = there_and_back(Tensor("x", datatype, values))
    assert back.datatype == datatype
    assert back.shape == values.shape
    assert back.data.tobytes() == values.tobytes()  # bytes, so that NaN and -0.0 count too


@pytest.mark.parametrize("datatype", [name for name in NUMERIC if name != "BOOL"])
def test_binary_is_little_endian(datatype: str) -> None:
    dtype = NUMPY_DTYPES[datatype]
    one = Tensor("x", datatype, np.ones(1, dtype))
    assert encode_binary(one) == np.ones(1, dtype.newbyteorder("<")).tobytes()


@given(hnp.arrays(np.uint16, SHAPES))
def test_bf16_survives_binary_bit_by_bit(bits: np.ndarray[Any, np.dtype[np.uint16]]) -> None:
    raw = bits.astype("<u2").tobytes()
    tensor = decode_binary("x", "BF16", bits.shape, memoryview(raw))
    again = np.frombuffer(encode_binary(tensor), "<u2").reshape(bits.shape)
    nan = np.isnan(tensor.data)
    assert np.array_equal(again[~nan], bits[~nan])
    assert np.isnan(decode_binary("x", "BF16", bits.shape, memoryview(again.tobytes())).data[nan]).all()


@pytest.mark.parametrize(
    ("value", "rounded"), [(1.00390625, 1.0), (1.01171875, 1.015625), (1.005, 1.0078125), (-1.00390625, -1.0)]
)
def test_bf16_rounds_to_the_nearest_even(value: float, rounded: float) -> None:
    assert there_and_back(Tensor("x", "BF16", np.array([value], np.float32))).data[0] == rounded


@pytest.mark.parametrize("bits", [0x7F800001, 0x7FFFFFFF, 0xFFFFFFFF, 0xFF80FFFF])
def test_bf16_keeps_nan_whatever_its_lower_bits(bits: int) -> None:
    nan = np.array([bits], np.uint32).view(np.float32)
    assert np.isnan(there_and_back(Tensor("x", "BF16", nan)).data).all()


@given(st.lists(st.binary(max_size=12), min_size=1, max_size=20))
def test_bytes_survive_binary(elements: list[bytes]) -> None:
    back = there_and_back(bytes_tensor("x", elements, [len(elements), 1]))
    assert back.shape == (len(elements), 1)
    assert back.data.ravel().tolist() == elements


@given(st.lists(st.text(max_size=12), min_size=1, max_size=20))
def test_text_is_sent_as_utf8_and_as_json_strings(texts: list[str]) -> None:
    tensor = bytes_tensor("x", texts, [len(texts)])
    assert [each.decode() for each in there_and_back(tensor).data] == texts
    assert json_values(tensor) == texts
    assert decode_json("x", "BYTES", (len(texts),), texts).data.tolist() == texts


@pytest.mark.parametrize("datatype", NUMERIC)
@given(data=st.data())
def test_numbers_survive_json_flat_and_nested(datatype: str, data: st.DataObject) -> None:
    dtype = NUMPY_DTYPES[datatype]
    elements = {"allow_nan": False, "allow_infinity": False} if dtype.kind == "f" else {}
    values = data.draw(hnp.arrays(dtype, SHAPES, elements=hnp.from_dtype(dtype, **elements)))
    for form in (values.tolist(), json_values(Tensor("x", datatype, values))):
        back = decode_json("x", datatype, values.shape, form)
        assert back.data.dtype == dtype
        assert np.array_equal(back.data, values)


@pytest.mark.parametrize(
    ("datatype", "shape", "data"),
    [
        ("UINT8", (1,), [256]),
        ("UINT8", (1,), [-1]),
        ("INT8", (1,), [1.5]),
        ("INT32", (1,), [2**31]),
        ("UINT64", (1,), [2**64]),
        ("INT64", (1,), [True]),
        ("BOOL", (1,), [1]),
        ("FP32", (1,), ["1"]),
        ("FP32", (1,), [None]),
        ("FP32", (1,), [{}]),
        ("FP64", (1,), [10**400]),
        ("FP32", (1,), 1.0),
        ("FP32", (1,), None),
        ("FP32", (2,), [1.0]),
        ("FP32", (1,), []),
        ("FP32", (2, 2), [[1.0, 2.0], [3.0]]),
        ("FP32", (2, 2), [[1.0, 2.0], 3.0]),
        ("FP32", (2, 3), [[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]]),
        ("FP32", (2**40, 2**40), [1.0]),
        ("FP32", (1, 1), [[[1.0]]]),
        ("BYTES", (1,), [1]),
        ("BYTES", (2,), ["a", None]),
        ("BYTES", (2,), [["a"], "b"]),
    ],
)
def test_json_that_does_not_fit_is_malformed(datatype: str, shape: tuple[int, ...], data: object) -> None:
    with pytest.raises(MalformedRequest, match="tensor 'x'"):
        decode_json("x", datatype, shape, data)


def test_a_long_string_among_numbers_costs_no_memory() -> None:
    with pytest.raises(MalformedRequest, match="must be numbers"):
        decode_json("x", "FP32", (1001,), [1.0] * 1000 + ["y" * 10_000_000])


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"\x01\x00\x00",
        struct.pack("<I", 5) + b"four",
        struct.pack("<I", 4) + b"four" + b"!",
        struct.pack("<I", 2**32 - 1) + b"four",
        struct.pack("<I", 4) + b"four" + struct.pack("<I", 0),
    ],
)
def test_bytes_whose_lengths_lie_are_malformed(raw: bytes) -> None:
    with pytest.raises(MalformedRequest, match="1 elements of BYTES"):
        decode_binary("x", "BYTES", (1,), memoryview(raw))


def test_a_count_of_elements_that_lies_is_refused_without_looping() -> None:
    with pytest.raises(MalformedRequest):
        decode_binary("x", "BYTES", (2**62,), memoryview(b"\0" * 64))
    with pytest.raises(MalformedRequest):
        decode_binary("x", "BYTES", (3,), memoryview(struct.pack("<I", 8) + b"eightyes"))


@pytest.mark.parametrize(("shape", "size"), [((2,), 4), ((2,), 12), ((1,), 3), ((2**31, 2**31), 8)])
def test_binary_that_does_not_fill_its_shape_is_malformed(shape: tuple[int, ...], size: int) -> None:
    with pytest.raises(MalformedRequest, match=f"binary_data_size says {size}"):
        decode_binary("x", "FP32", shape, memoryview(b"\0" * size))


@pytest.mark.parametrize("datatype", ["FP31", "fp32", "", None, 3, ["FP32"], {}])
def test_unknown_data_types_are_named(datatype: object) -> None:
    with pytest.raises(MalformedRequest, match="unknown datatype"):
        check_datatype("x", datatype)


def test_the_nearest_data_type_is_offered() -> None:
    with pytest.raises(MalformedRequest, match="did you mean 'FP32'"):
        check_datatype("x", "FP 32")
