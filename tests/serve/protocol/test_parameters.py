"""V2 parameters: a null is an absent key, and what would not be heard is refused."""

import base64
import json
from typing import Any

import numpy as np
import pytest

from fewshard_serve.errors import MalformedRequest
from fewshard_serve.protocol.limits import Limits
from fewshard_serve.protocol.oip import InferRequest, parse_infer

TEXT: dict[str, Any] = {"name": "text", "datatype": "BYTES", "shape": [1], "data": ["a fine film"]}


def parse(document: dict[str, Any], tail: bytes | None = None) -> InferRequest:
    head = json.dumps(document).encode()
    return parse_infer(head + (tail or b""), None if tail is None else str(len(head)), Limits())


def seen(request: InferRequest) -> Any:
    return [tensor.data.tolist() for tensor in request.inputs.values()], request.outputs, request.timeout_s


@pytest.mark.parametrize(
    "document",
    [
        {"inputs": [TEXT], "id": None},
        {"inputs": [TEXT], "parameters": None},
        {"inputs": [TEXT], "outputs": None},
        {"inputs": [{**TEXT, "parameters": None}]},
        {"inputs": [{**TEXT, "parameters": {"binary_data_size": None, "content_type": None}}]},
        {"inputs": [TEXT], "parameters": {"timeout": None, "truncate": None, "binary_data_output": None}},
        {"inputs": [TEXT], "parameters": {"sequence_id": 0, "sequence_start": False, "priority": 0}},
        {"inputs": [TEXT], "parameters": {"content_type": "str"}},
        {"inputs": [TEXT], "parameters": {"triton_enable_empty_final_response": True}},
    ],
)
def test_null_stands_for_an_absent_key(document: dict[str, Any]) -> None:
    assert seen(parse(document)) == seen(parse({"inputs": [TEXT]}))


def test_null_in_an_output_stands_for_an_absent_key() -> None:
    plain = parse({"inputs": [TEXT], "outputs": [{"name": "scores"}]})
    for parameters in (None, {"binary_data": None, "classification": None}):
        outputs = [{"name": "scores", "parameters": parameters}]
        assert seen(parse({"inputs": [TEXT], "outputs": outputs})) == seen(plain)


def test_binary_data_beside_data_that_is_null() -> None:
    entry = {**TEXT, "data": None, "parameters": {"binary_data_size": 6}}
    (tensor,) = parse({"inputs": [entry]}, b"\x02\0\0\0w1").inputs.values()
    assert tensor.data.tolist() == [b"w1"]


@pytest.mark.parametrize(
    ("parameters", "words"),
    [
        ({"truncat": False}, "did you mean 'truncate'"),
        ({"temperature": 0.5}, "unknown parameter 'temperature'"),
        ({"priority": 1}, "X-Request-Priority"),
        ({"sequence_id": 3, "sequence_start": True}, "no sequences"),
        ({"content_type": "pd"}, "content_type 'pd' is not read"),
        ({"content_type": "base64"}, "content_type 'base64' is not read"),
    ],
)
def test_what_would_not_be_heard_is_refused(parameters: dict[str, Any], words: str) -> None:
    with pytest.raises(MalformedRequest, match=words):
        parse({"inputs": [TEXT], "parameters": parameters})


@pytest.mark.parametrize("tensor", [{"shared_memory_region": "r"}, {"content_type": "hg_json"}, {"size": 1}])
def test_parameters_of_tensors_are_heard_or_refused_too(tensor: dict[str, Any]) -> None:
    with pytest.raises(MalformedRequest, match=r"^input 'text'"):
        parse({"inputs": [{**TEXT, "parameters": tensor}]})
    with pytest.raises(MalformedRequest, match=r"^output 'scores'"):
        parse({"inputs": [TEXT], "outputs": [{"name": "scores", "parameters": tensor}]})


def test_base64_is_decoded_where_the_input_says_so() -> None:
    """As MLServer's Base64Codec writes it."""
    entry = {**TEXT, "data": [base64.b64encode("früh".encode()).decode()]}
    (tensor,) = parse({"inputs": [{**entry, "parameters": {"content_type": "base64"}}]}).inputs.values()
    assert tensor.data.tolist() == ["früh".encode()]
    numbers = {"name": "x", "datatype": "INT32", "shape": [1], "data": [1]}
    (tensor,) = parse({"inputs": [{**numbers, "parameters": {"content_type": "np"}}]}).inputs.values()
    assert np.array_equal(tensor.data, [1])
    with pytest.raises(MalformedRequest, match="its elements are not"):
        parse({"inputs": [{**TEXT, "data": ["?"], "parameters": {"content_type": "base64"}}]})
