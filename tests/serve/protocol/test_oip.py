"""Whole V2 requests and responses: as the specification and Triton's extension say, and every lie."""

import json
import struct
from contextlib import suppress
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fewshard_serve.errors import MalformedRequest, ServeError, TooLarge
from fewshard_serve.protocol.limits import Limits
from fewshard_serve.protocol.oip import Expected, InferRequest, InferResponse, encode_response, parse_infer
from fewshard_serve.protocol.tensors import Tensor, bytes_tensor, encode_binary

TEXT = {"name": "text", "datatype": "BYTES", "shape": [1], "data": ["a"]}


def parse(document: object, tail: bytes | None = None) -> InferRequest:
    head = json.dumps(document).encode()
    return parse_infer(head + (tail or b""), None if tail is None else str(len(head)), Limits())


def binary(name: str, datatype: str, shape: list[Any], size: object) -> dict[str, Any]:
    return {"name": name, "datatype": datatype, "shape": shape, "parameters": {"binary_data_size": size}}


def test_a_request_says_everything_it_may_say() -> None:
    request = parse(
        {
            "id": "abc",
            "parameters": {
                "timeout": 2_500_000,
                "binary_data_output": True,
                "truncate": False,
            },
            "inputs": [TEXT],
            "outputs": [
                {"name": "scores", "parameters": {"binary_data": False, "classification": 2}},
                {"name": "label"},
            ],
            "unknown": 1,
        }
    )
    assert (request.id, request.timeout_s, request.truncate) == ("abc", 2.5, False)
    assert request.inputs["text"].data.tolist() == ["a"]
    scores, label = request.outputs
    assert (scores.name, scores.is_binary, scores.num_classes) == ("scores", False, 2)
    assert (label.name, label.is_binary, label.num_classes) == ("label", True, 0)


def test_a_request_may_leave_out_all_but_inputs() -> None:
    request = parse({"inputs": [TEXT]})
    assert (request.id, request.timeout_s, request.truncate, request.outputs) == ("", None, True, ())
    assert not request.is_binary_default


def test_binary_tensors_follow_in_the_order_of_the_inputs() -> None:
    first, second = np.array([[1.5], [2.5]], "<f4"), bytes_tensor("b", ["x", "yz"], [2])
    tail = first.tobytes() + encode_binary(second)
    request = parse(
        {"inputs": [binary("a", "FP32", [2, 1], 8), TEXT, binary("b", "BYTES", [2], len(tail) - 8)]}, tail
    )
    assert request.inputs["a"].data.tolist() == [[1.5], [2.5]]
    assert request.inputs["text"].data.tolist() == ["a"]
    assert request.inputs["b"].data.tolist() == [b"x", b"yz"]


def test_a_header_of_zero_makes_the_whole_body_one_item() -> None:
    request = parse_infer(b"anything \xff", "0", Limits())
    assert request.raw == b"anything \xff"
    assert request.is_binary_default


@pytest.mark.parametrize("header", ["-1", "x", "", "1.0", "1e3", " 5", "9" * 30, "²", "99"])
def test_a_header_that_lies_is_malformed(header: str) -> None:
    with pytest.raises(MalformedRequest, match="Inference-Header-Content-Length"):
        parse_infer(b'{"inputs":[]}', header, Limits())


@pytest.mark.parametrize("size", [3, 5, -1, 2**70, "4", 4.0, None, True, [4]])
def test_a_binary_size_that_lies_is_malformed(size: object) -> None:
    with pytest.raises(MalformedRequest):
        parse({"inputs": [binary("a", "FP32", [1], size)]}, b"\0\0\0\0")


def test_a_tensor_is_looked_at_before_its_data() -> None:
    looked: list[Any] = []

    def look(*seen: Any) -> None:
        looked.append(seen)
        raise MalformedRequest("not for this model")

    damaged = TEXT | {"shape": [9], "data": [[1], "a", {}]}
    for document, tail in (
        ({"inputs": [damaged]}, None),
        ({"inputs": [binary("a", "FP32", [2], 4)]}, b"1234"),
    ):
        head = json.dumps(document).encode()
        size = None if tail is None else str(len(head))
        with pytest.raises(MalformedRequest, match="not for this model"):
            parse_infer(head + (tail or b""), size, Limits(), Expected(look))
    assert looked == [("text", "BYTES", (9,)), ("a", "FP32", (2,))]


def test_more_values_than_the_model_takes_are_refused_before_the_json_is_parsed() -> None:
    body = b'{"inputs": [' + b"0," * 100 + b"no JSON"
    with pytest.raises(TooLarge, match="over 50 values"):
        parse_infer(body, None, Limits(), Expected(max_json_values=50))


def test_bytes_that_belong_to_no_tensor_are_malformed() -> None:
    with pytest.raises(MalformedRequest, match="4 bytes after"):
        parse({"inputs": [binary("a", "FP32", [1], 4)]}, b"\0" * 8)
    with pytest.raises(MalformedRequest, match="1 bytes after"):
        parse({"inputs": [TEXT]}, b"\0")


def test_binary_data_needs_the_header() -> None:
    with pytest.raises(MalformedRequest, match="no Inference-Header-Content-Length"):
        parse({"inputs": [binary("a", "FP32", [1], 4)]})


def test_one_tensor_cannot_be_both_json_and_binary() -> None:
    with pytest.raises(MalformedRequest, match="both data and binary_data_size"):
        parse({"inputs": [binary("a", "FP32", [1], 4) | {"data": [1.0]}]}, b"\0" * 4)


@pytest.mark.parametrize(
    "document",
    [
        [],
        1,
        None,
        "inputs",
        {},
        {"inputs": []},
        {"inputs": None},
        {"inputs": {}},
        {"inputs": [1]},
        {"inputs": [[]]},
        {"inputs": [{}]},
        {"inputs": [{"name": "text"}]},
        {"inputs": [TEXT | {"name": 1}]},
        {"inputs": [TEXT | {"name": None}]},
        {"inputs": [TEXT | {"datatype": None}]},
        {"inputs": [TEXT | {"datatype": "STRING"}]},
        {"inputs": [TEXT | {"shape": None}]},
        {"inputs": [TEXT | {"shape": 1}]},
        {"inputs": [TEXT | {"shape": []}]},
        {"inputs": [TEXT | {"shape": [0]}]},
        {"inputs": [TEXT | {"shape": [-1]}]},
        {"inputs": [TEXT | {"shape": [1.0]}]},
        {"inputs": [TEXT | {"shape": [True]}]},
        {"inputs": [TEXT | {"shape": ["1"]}]},
        {"inputs": [TEXT | {"shape": [2]}]},
        {"inputs": [TEXT | {"shape": [2**64]}]},
        {"inputs": [TEXT | {"shape": [10**4000]}]},
        {"inputs": [TEXT | {"shape": [2**62, 2**62]}]},
        {"inputs": [TEXT | {"shape": [1] * 9}]},
        {"inputs": [TEXT | {"shape": [1] * 5000}]},
        {"inputs": [TEXT | {"data": None}]},
        {"inputs": [TEXT | {"parameters": []}]},
        {"inputs": [TEXT | {"parameters": {"shared_memory_region": "r"}}]},
        {"inputs": [TEXT, TEXT]},
        {"inputs": [TEXT], "id": 1},
        {"inputs": [TEXT], "parameters": []},
        {"inputs": [TEXT], "parameters": {"timeout": -1}},
        {"inputs": [TEXT], "parameters": {"timeout": "1"}},
        {"inputs": [TEXT], "parameters": {"timeout": 1.5}},
        {"inputs": [TEXT], "parameters": {"timeout": True}},
        {"inputs": [TEXT], "parameters": {"timeout": 10**300}},
        {"inputs": [TEXT], "parameters": {"binary_data_output": 1}},
        {"inputs": [TEXT], "parameters": {"truncate": "yes"}},
        {"inputs": [TEXT], "outputs": {}},
        {"inputs": [TEXT], "outputs": ["scores"]},
        {"inputs": [TEXT], "outputs": [{}]},
        {"inputs": [TEXT], "outputs": [{"name": "scores"}, {"name": "scores"}]},
        {"inputs": [TEXT], "outputs": [{"name": "scores", "parameters": {"classification": -1}}]},
        {"inputs": [TEXT], "outputs": [{"name": "scores", "parameters": {"classification": 1.5}}]},
        {"inputs": [TEXT], "outputs": [{"name": "scores", "parameters": {"classification": True}}]},
        {"inputs": [TEXT], "outputs": [{"name": "scores", "parameters": {"binary_data": "yes"}}]},
    ],
)
def test_what_the_specification_does_not_allow_is_malformed(document: object) -> None:
    with pytest.raises(MalformedRequest):
        parse(document)


def test_a_timeout_of_zero_means_none() -> None:
    assert parse({"inputs": [TEXT], "parameters": {"timeout": 0}}).timeout_s is None


def test_too_deep_json_is_too_large() -> None:
    with pytest.raises(TooLarge):
        parse({"inputs": [TEXT | {"data": json.loads("[" * 40 + "]" * 40)}]})


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)
LIKE_A_TENSOR = st.fixed_dictionaries(
    {},
    optional={
        "name": st.sampled_from(["text", "a"]) | JSON_VALUES,
        "datatype": st.sampled_from(["BYTES", "FP32", "BF16", "BOOL", "INT8"]) | JSON_VALUES,
        "shape": st.lists(st.integers(-1, 5), max_size=4) | JSON_VALUES,
        "data": JSON_VALUES,
        "parameters": st.fixed_dictionaries({}, optional={"binary_data_size": st.integers(-1, 40)}),
    },
)


@given(
    st.fixed_dictionaries(
        {"inputs": st.lists(LIKE_A_TENSOR, max_size=3) | JSON_VALUES},
        optional={"outputs": JSON_VALUES, "parameters": JSON_VALUES, "id": JSON_VALUES},
    ),
    st.none() | st.binary(max_size=40),
)
def test_no_request_raises_anything_but_our_errors(document: object, tail: bytes | None) -> None:
    with suppress(ServeError):
        assert parse(document, tail).inputs


@given(st.binary(max_size=60), st.none() | st.integers(0, 60))
def test_no_bytes_raise_anything_but_our_errors(body: bytes, header: int | None) -> None:
    with suppress(ServeError):
        assert parse_infer(body, None if header is None else str(header), Limits()) is not None


def test_a_json_response_is_flat_and_echoes_the_id() -> None:
    scores = Tensor("scores", "FP32", np.array([[0.25, 0.75]], np.float32))
    encoded = encode_response(InferResponse("m", "1", "abc", {"tokens": 4}), [(scores, False)])
    assert encoded.json_size is None
    assert json.loads(encoded.body) == {
        "model_name": "m",
        "model_version": "1",
        "id": "abc",
        "parameters": {"tokens": 4},
        "outputs": [{"name": "scores", "datatype": "FP32", "shape": [1, 2], "data": [0.25, 0.75]}],
    }


def test_a_mixed_response_has_json_first_and_binary_in_order() -> None:
    scores = Tensor("scores", "FP32", np.array([[0.25, 0.75]], np.float32))
    label = bytes_tensor("label", ["ok"], [1])
    logits = Tensor("logits", "FP32", np.array([[1.0, 2.0]], np.float32))
    encoded = encode_response(InferResponse("m", "1"), [(scores, True), (label, False), (logits, True)])
    assert encoded.json_size is not None
    head = json.loads(encoded.body[: encoded.json_size])
    assert "id" not in head
    assert head["outputs"][1]["data"] == ["ok"]
    assert [output.get("parameters") for output in head["outputs"]] == [
        {"binary_data_size": 8},
        None,
        {"binary_data_size": 8},
    ]
    assert encoded.body[encoded.json_size :] == struct.pack("<4f", 0.25, 0.75, 1.0, 2.0)
