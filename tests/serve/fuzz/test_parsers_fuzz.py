"""Made-up bytes for all that reads what strangers wrote: an answer or an error of ours, nothing else."""

import io
import json
import struct
from math import prod

import numpy as np
import pytest
from google.protobuf.message import DecodeError
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from fewshard_core.values import EncodedImage, ModelInfo, PixelArray, TextInput
from fewshard_models.classifier.image_files import FORMATS, ImageError, decode_image
from fewshard_serve.errors import ServeError
from fewshard_serve.http.responses import status_of
from fewshard_serve.protocol import classify, model_tensors, oip, tei, vllm
from fewshard_serve.protocol.json_guard import check_structure
from fewshard_serve.protocol.limits import Limits
from fewshard_serve.protocol.tensors import (
    NUMPY_DTYPES,
    Tensor,
    bytes_tensor,
    decode_binary,
    decode_json,
    encode_binary,
    json_values,
)
from fewshard_serve.rpc import convert
from fewshard_serve.rpc.messages import CLASSES

FUZZ = settings.get_profile("fuzz")
LIMITS = Limits(max_body_bytes=100_000, max_items=64, max_text_bytes=10_000, max_image_pixels=10_000)
INFOS = [
    ModelInfo(task, task, "dense", ("a", "b"), "single_label_classification", "x", "fp32", "cpu", 128)
    for task in ("text", "image")
]

numbers = st.integers(-(2**70), 2**70) | st.integers(-3, 5) | st.floats() | st.sampled_from([1e308, -0.0])
scalars = st.none() | st.booleans() | numbers | st.text(max_size=8)
names = st.sampled_from(["text", "text_pair", "image", "pixel_values", "scores", ""]) | st.text(max_size=4)
datatypes = st.sampled_from([*NUMPY_DTYPES, "BYTE"]) | scalars
values = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(names, inner, max_size=3),
    max_leaves=12,
)
shapes = st.lists(st.integers(-1, 6), max_size=5) | values
parameters = st.dictionaries(
    st.sampled_from(
        ["binary_data_size", "binary_data", "binary_data_output", "classification", "timeout", "truncate"]
    ),
    st.integers(-2, 40) | st.booleans() | scalars,
    max_size=3,
)


def objects(**fields):
    """A JSON object with some of these keys, and now and then one of another type."""
    return st.fixed_dictionaries({}, optional=fields) | values


tensors = objects(name=names, datatype=datatypes, shape=shapes, data=values, parameters=parameters | values)
requests = objects(
    id=st.text(max_size=5) | values,
    parameters=parameters | values,
    inputs=st.lists(tensors, max_size=3) | values,
    outputs=st.lists(objects(name=names, parameters=parameters | values), max_size=3) | values,
)


def check_callers(error):
    assert 400 <= status_of(error) < 500, repr(error)


def read_inputs(parsed):
    """What a model of either task makes of a request; errors must be the caller's."""
    for info in INFOS:
        try:
            model_tensors.check_outputs(parsed, info)
            for one in model_tensors.to_inputs(parsed, info, LIMITS):
                assert isinstance(one, TextInput | EncodedImage | PixelArray)
        except ServeError as error:
            check_callers(error)


def infer(body, header):
    try:
        parsed = oip.parse_infer(body, header, LIMITS)
    except ServeError as error:
        check_callers(error)
        return
    for tensor in parsed.inputs.values():
        assert tensor.data.dtype == NUMPY_DTYPES[tensor.datatype]
    read_inputs(parsed)


@settings(FUZZ)
@given(st.binary(max_size=300), st.none() | st.integers(-2, 400).map(str) | st.text(max_size=5))
def test_any_bytes_as_a_v2_request(body, header):
    infer(body, header)


@settings(FUZZ)
@given(requests, st.binary(max_size=80), st.integers(-4, 4), st.booleans())
def test_made_up_v2_requests_with_a_binary_tail(document, tail, off_by, has_header):
    """The header now and then lies by a few bytes."""
    head = json.dumps(document).encode()
    infer(head + (tail if has_header else b""), str(max(0, len(head) + off_by)) if has_header else None)


@settings(FUZZ)
@given(
    st.sampled_from(sorted(NUMPY_DTYPES)),
    st.lists(st.integers(1, 2**63 - 1) | st.integers(1, 5), min_size=1, max_size=4),
    st.binary(max_size=100),
)
def test_any_bytes_as_a_binary_tensor(datatype, shape, raw):
    try:
        tensor = decode_binary("t", datatype, tuple(shape), memoryview(raw))
    except ServeError as error:
        check_callers(error)
        return
    assert tensor.shape == tuple(shape)
    if datatype not in ("BOOL", "BF16"):  # of which several bytes mean the same
        assert encode_binary(tensor) == raw


def element_of(datatype):
    dtype = NUMPY_DTYPES[datatype]
    if datatype == "BYTES":
        return st.binary(max_size=6)
    if dtype.kind == "b":
        return st.booleans()
    if dtype.kind == "f":
        return st.floats(width={"FP16": 16, "FP64": 64}.get(datatype, 32), allow_nan=False)
    return st.integers(int(np.iinfo(dtype).min), int(np.iinfo(dtype).max))


@settings(FUZZ)
@given(st.sampled_from(sorted(NUMPY_DTYPES)), st.lists(st.integers(0, 3), max_size=3), st.data())
def test_tensors_survive_both_forms(datatype, shape, data):
    size = prod(shape)
    elements = data.draw(st.lists(element_of(datatype), min_size=size, max_size=size))
    if datatype == "BYTES":
        tensor = bytes_tensor("t", elements, shape)
    else:
        tensor = Tensor("t", datatype, np.array(elements, NUMPY_DTYPES[datatype]).reshape(shape))
    if datatype == "BF16":  # what it can hold, after one rounding
        tensor = decode_binary("t", datatype, tuple(shape), memoryview(encode_binary(tensor)))
    again = decode_binary("t", datatype, tuple(shape), memoryview(encode_binary(tensor)))
    assert np.array_equal(again.data, tensor.data)
    if datatype != "BYTES":
        again = decode_json("t", datatype, tuple(shape), json_values(tensor))
        assert np.array_equal(again.data, tensor.data)


bodies = objects(
    model=st.text(max_size=3) | values,
    inputs=values | st.text(max_size=10) | st.lists(st.lists(st.text(max_size=4), max_size=3), max_size=3),
    input=values | st.text(max_size=10),
    top_k=scalars,
    raw_scores=scalars,
    truncate=scalars,
    truncation_direction=scalars,
    use_activation=scalars,
    truncate_prompt_tokens=scalars,
)
READERS = [
    (classify.parse_classify, classify.to_inputs),
    (classify.parse_gateway_classify, classify.to_inputs),
    (tei.parse, tei.to_inputs),
    (vllm.parse, vllm.to_inputs),
]


@pytest.mark.parametrize(("parse", "to_inputs"), READERS)
@settings(FUZZ)
@given(body=bodies.map(lambda value: json.dumps(value).encode()) | st.binary(max_size=120))
def test_made_up_bodies_of_the_other_protocols(parse, to_inputs, body):
    for info in INFOS:
        try:
            for one in to_inputs(parse(body, LIMITS), info, LIMITS):
                assert isinstance(one, TextInput | EncodedImage)
        except ServeError as error:
            check_callers(error)


@settings(FUZZ)
@given(st.text(alphabet='[]{}",\\:a1 ', max_size=200), st.integers(1, 8))
def test_the_depth_check_agrees_with_a_parser(text, max_depth):
    """Of valid JSON it finds the depth; of any other text it only has to end."""
    try:
        document = json.loads(text)
    except ValueError:
        document = None
    try:
        check_structure(text.encode(), max_depth, 1000)
        is_refused = False
    except ServeError:
        is_refused = True
    if document is not None:
        assert is_refused == (depth_of(document) > max_depth)


def depth_of(value):
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list):
        return 1 + max(map(depth_of, value), default=0)
    return 0


def image_file(format, mode="RGB", size=(7, 5)):
    pixels = np.arange(size[0] * size[1] * 4, dtype=np.uint8)
    image = Image.frombytes("RGBA", size, pixels.tobytes()).convert(mode)
    out = io.BytesIO()
    image.save(out, format)
    return out.getvalue()


def decoded(data):
    try:
        pixels = decode_image(data, LIMITS.max_image_pixels)
    except ImageError:
        return
    assert pixels.dtype == np.uint8
    assert pixels.shape[2] == 3
    assert prod(pixels.shape[:2]) <= LIMITS.max_image_pixels


FILES = [image_file(format) for format in FORMATS] + [image_file("PNG", "P"), image_file("PNG", "L")]


@pytest.mark.filterwarnings("ignore")
@settings(FUZZ)
@given(st.sampled_from(FILES), st.data())
def test_damaged_images(data, draw):
    """Bytes changed, left out or put in, the end cut off."""
    damaged = bytearray(data)
    for _ in range(draw.draw(st.integers(0, 6))):
        place = draw.draw(st.integers(0, max(0, len(damaged) - 1)))
        match draw.draw(st.sampled_from(["change", "drop", "insert", "cut"])):
            case "change":
                damaged[place : place + 1] = draw.draw(st.binary(min_size=1, max_size=1))
            case "drop":
                del damaged[place : place + draw.draw(st.integers(1, 4))]
            case "insert":
                damaged[place:place] = draw.draw(st.binary(max_size=4))
            case "cut":
                del damaged[place:]
    decoded(bytes(damaged))


@pytest.mark.filterwarnings("ignore")
@settings(FUZZ)
@given(
    st.binary(max_size=200)
    | st.tuples(st.sampled_from([each[:12] for each in FILES]), st.binary(max_size=200)).map(b"".join)
)
def test_any_bytes_as_an_image(data):
    decoded(data)


@settings(FUZZ)
@given(st.integers(0, 2**32 - 1), st.integers(0, 2**32 - 1))
def test_a_png_that_lies_about_its_size(width, height):
    """A header of a few bytes must not make anybody reserve gigabytes."""
    header = struct.pack(">II", width, height) + b"\x08\x02\x00\x00\x00"
    data = FILES[0]
    decoded(data[:16] + header[:8] + data[24:])


contents = st.fixed_dictionaries(
    {},
    optional={
        "bytes_contents": st.lists(st.binary(max_size=5), max_size=4),
        "int_contents": st.lists(st.integers(-(2**31), 2**31 - 1), max_size=4),
        "fp32_contents": st.lists(st.floats(width=32), max_size=4),
        "bool_contents": st.lists(st.booleans(), max_size=4),
    },
)
messages = st.fixed_dictionaries(
    {
        "model_name": st.text(max_size=3),
        "inputs": st.lists(
            st.fixed_dictionaries(
                {
                    "name": names,
                    "datatype": st.sampled_from([*NUMPY_DTYPES, "", "BYTE"]),
                    "shape": st.lists(st.integers(-1, 4) | st.integers(-(2**63), 2**63 - 1), max_size=4),
                },
                optional={"contents": contents},
            ),
            max_size=3,
        ),
        "outputs": st.lists(st.fixed_dictionaries({"name": names}), max_size=3),
        "raw_input_contents": st.just([]) | st.lists(st.binary(max_size=30), max_size=3),
    }
)


def read_message(message):
    try:
        read_inputs(convert.to_request(message))
    except ServeError as error:
        check_callers(error)


@settings(FUZZ)
@given(messages)
def test_made_up_grpc_messages(fields):
    read_message(CLASSES["ModelInferRequest"](**fields))


@settings(FUZZ)
@given(messages, st.binary(max_size=40), st.integers(0, 60))
def test_damaged_grpc_messages(fields, patch, place):
    wire = bytearray(CLASSES["ModelInferRequest"](**fields).SerializeToString())
    wire[place : place + len(patch)] = patch
    try:
        message = CLASSES["ModelInferRequest"].FromString(bytes(wire))
    except DecodeError:
        return
    read_message(message)
