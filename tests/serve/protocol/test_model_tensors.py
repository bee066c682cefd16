"""What V2 tensors mean to a text or image classifier: items in, scores, logits and labels out."""

import base64
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from fewshard_core.values import EncodedImage, ModelInfo, PixelArray, ProblemType, Task, TextInput
from fewshard_serve.core import Classified, Timings
from fewshard_serve.errors import MalformedRequest, TooLarge, UnusableItem
from fewshard_serve.protocol.json_guard import MAX_VALUES
from fewshard_serve.protocol.limits import Limits
from fewshard_serve.protocol.model_tensors import (
    check_outputs,
    expected,
    input_tensors,
    metadata,
    to_inputs,
    to_outputs,
)
from fewshard_serve.protocol.oip import InferRequest, RequestedOutput
from fewshard_serve.protocol.tensors import Tensor, bytes_tensor

LIMITS = Limits(max_items=4, max_text_bytes=100, max_image_pixels=100)
LOGITS = np.array([[0.0, 2.0, 1.0], [3.0, -1.0, 3.0]], np.float32)


def answer(logits: NDArray[np.float32]) -> Classified:
    return Classified(logits, 5, Timings(0.0, 0.0, 0.0))


def info(task: Task = "text", problem: ProblemType = "single_label_classification") -> ModelInfo:
    return ModelInfo("m", task, "dense", ("a", "b", "c"), problem, "arch", "fp32", "cpu", 128)


def texts(*elements: str | bytes, name: str = "text") -> Tensor:
    return bytes_tensor(name, elements, [len(elements)])


def given(*tensors: Tensor, **said: Any) -> InferRequest:
    return InferRequest(inputs={tensor.name: tensor for tensor in tensors}, **said)


def test_a_text_model_takes_few_values_and_an_image_model_many() -> None:
    limits = Limits(max_items=100)
    assert expected(info(), limits).max_json_values == 1800
    assert expected(info("image"), limits).max_json_values == MAX_VALUES


@pytest.mark.parametrize(
    ("task", "name", "datatype", "shape", "reason"),
    [
        ("text", "image", "UINT8", (1, 2, 2, 3), "takes no input 'image'"),
        ("text", "text", "UINT8", (3,), "must be BYTES"),
        ("text", "text", "BYTES", (2, 2), r"shape \[N\]"),
        ("text", "text", "BYTES", (5,), "at most 4"),
        ("image", "image", "FP32", (1, 2, 2, 3), "must be UINT8"),
        ("image", "image", "UINT8", (1, 2, 2, 4), "must have shape"),
        ("image", "image", "UINT8", (5, 2, 2, 3), "at most 4"),
        ("image", "image", "UINT8", (2**40, 2**20, 3), "over 100 pixels"),
        ("image", "image", "BYTES", (5,), "at most 4"),
        ("image", "pixel_values", "UINT8", (1, 3, 2, 2), "must be FP32"),
        ("image", "pixel_values", "FP32", (1, 2, 2, 3), "must have shape"),
    ],
)
def test_what_a_model_does_not_take_is_told_by_name_type_and_shape(
    task: str, name: str, datatype: str, shape: tuple[int, ...], reason: str
) -> None:
    with pytest.raises((MalformedRequest, TooLarge, UnusableItem), match=reason):
        expected(info(task), LIMITS).look(name, datatype, shape)


def test_texts_come_from_bytes_and_strings_of_either_shape() -> None:
    wanted = [TextInput("grün"), TextInput("")]
    assert to_inputs(given(texts("grün", "")), info(), LIMITS) == wanted
    assert to_inputs(given(texts("grün".encode(), b"")), info(), LIMITS) == wanted
    assert to_inputs(given(bytes_tensor("text", ["grün", ""], [2, 1])), info(), LIMITS) == wanted


def test_pairs_need_as_many_second_texts() -> None:
    pair = given(texts("a", "b"), texts("c", "d", name="text_pair"))
    assert to_inputs(pair, info(), LIMITS) == [TextInput("a", "c"), TextInput("b", "d")]
    with pytest.raises(MalformedRequest, match="2 items, text_pair has 1"):
        to_inputs(given(texts("a", "b"), texts("c", name="text_pair")), info(), LIMITS)
    with pytest.raises(MalformedRequest, match="`text` is missing"):
        to_inputs(given(texts("c", name="text_pair")), info(), LIMITS)


@pytest.mark.parametrize(
    "tensor",
    [
        Tensor("text", "UINT8", np.zeros(3, np.uint8)),
        bytes_tensor("text", ["a", "b"], [1, 2]),
        bytes_tensor("text", ["a"], [1, 1, 1]),
        texts("a", name="txt"),
        texts("a", name="image"),
    ],
)
def test_what_a_text_model_does_not_take_is_malformed(tensor: Tensor) -> None:
    with pytest.raises(MalformedRequest):
        to_inputs(given(tensor), info(), LIMITS)


def test_the_nearest_input_is_offered() -> None:
    with pytest.raises(MalformedRequest, match="did you mean 'text_pair'"):
        to_inputs(given(texts("a"), texts("b", name="textpair")), info(), LIMITS)


def test_text_that_is_not_utf8_names_its_item() -> None:
    with pytest.raises(UnusableItem, match="item 1: the text is not UTF-8") as caught:
        to_inputs(given(texts(b"ok", b"\xff\xfe")), info(), LIMITS)
    assert caught.value.index == 1
    with pytest.raises(UnusableItem, match="item 0"):
        to_inputs(given(texts("ok"), texts(b"\xff", name="text_pair")), info(), LIMITS)


@pytest.mark.parametrize("text", ["é" * 51, "é".encode() * 51, "x" * 101, b"\xff" * 101])
def test_a_long_text_is_too_large_in_bytes(text: str | bytes) -> None:
    with pytest.raises(TooLarge, match=r"item 1: .*max_text_bytes"):
        to_inputs(given(texts("é" * 50, text)), info(), LIMITS)


def test_too_many_items_are_too_large() -> None:
    assert len(to_inputs(given(texts(*"abcd")), info(), LIMITS)) == 4
    with pytest.raises(TooLarge, match="5 items, at most 4"):
        to_inputs(given(texts(*"abcde")), info(), LIMITS)
    with pytest.raises(TooLarge, match="max_items"):
        to_inputs(given(Tensor("image", "UINT8", np.zeros((5, 2, 2, 3), np.uint8))), info("image"), LIMITS)


def test_a_raw_request_is_one_text_or_one_image_file() -> None:
    raw = InferRequest(inputs={}, raw=b"caf\xc3\xa9")
    assert to_inputs(raw, info(), LIMITS) == [TextInput("café")]
    assert to_inputs(raw, info("image"), LIMITS) == [EncodedImage(b"caf\xc3\xa9", LIMITS.max_image_pixels)]
    with pytest.raises(UnusableItem):
        to_inputs(InferRequest(inputs={}, raw=b"\xff"), info(), LIMITS)


def test_pixels_come_one_by_one_or_as_a_batch() -> None:
    pixels = np.arange(2 * 4 * 5 * 3, dtype=np.uint8).reshape(2, 4, 5, 3)
    batch = to_inputs(given(Tensor("image", "UINT8", pixels)), info("image"), LIMITS)
    assert len(batch) == 2
    assert isinstance(batch[1], PixelArray)
    assert np.array_equal(batch[1].pixels, pixels[1])
    (one,) = to_inputs(given(Tensor("image", "UINT8", pixels[0])), info("image"), LIMITS)
    assert isinstance(one, PixelArray)
    assert np.array_equal(one.pixels, pixels[0])


@pytest.mark.parametrize("datatype", ["FP32", "FP16", "BF16"])
def test_normalised_pixels_become_float32(datatype: str) -> None:
    values = np.ones((1, 3, 4, 5), np.float16 if datatype == "FP16" else np.float32)
    (one,) = to_inputs(given(Tensor("pixel_values", datatype, values)), info("image"), LIMITS)
    assert isinstance(one, PixelArray)
    assert one.pixels.dtype == np.float32
    assert one.pixels.shape == (3, 4, 5)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_pixels_that_are_no_numbers_name_their_item(bad: float) -> None:
    values = np.ones((3, 3, 4, 5), np.float32)
    values[2, 1, 0, 0] = bad
    with pytest.raises(UnusableItem, match="item 2: pixel_values holds NaN or infinity"):
        to_inputs(given(Tensor("pixel_values", "FP32", values)), info("image"), LIMITS)


@pytest.mark.parametrize(
    "tensor",
    [
        Tensor("image", "UINT8", np.zeros((4, 4), np.uint8)),
        Tensor("image", "UINT8", np.zeros((4, 4, 4), np.uint8)),
        Tensor("image", "UINT8", np.zeros((1, 3, 4, 4), np.uint8)),
        Tensor("image", "UINT8", np.zeros((1, 1, 4, 4, 3), np.uint8)),
        Tensor("image", "FP32", np.zeros((4, 4, 3), np.float32)),
        Tensor("pixel_values", "UINT8", np.zeros((1, 3, 4, 4), np.uint8)),
        Tensor("pixel_values", "FP64", np.zeros((1, 3, 4, 4))),
        Tensor("pixel_values", "FP32", np.zeros((1, 4, 4, 3), np.float32)),
        texts("a"),
    ],
)
def test_what_an_image_model_does_not_take_is_malformed(tensor: Tensor) -> None:
    with pytest.raises(MalformedRequest):
        to_inputs(given(tensor), info("image"), LIMITS)


def test_an_image_comes_in_one_way_only() -> None:
    both = given(
        Tensor("image", "UINT8", np.zeros((4, 4, 3), np.uint8)),
        Tensor("pixel_values", "FP32", np.zeros((3, 4, 4), np.float32)),
    )
    with pytest.raises(MalformedRequest, match="not both"):
        to_inputs(both, info("image"), LIMITS)


def test_an_image_with_too_many_pixels_is_refused() -> None:
    with pytest.raises(UnusableItem, match="max_image_pixels"):
        to_inputs(given(Tensor("image", "UINT8", np.zeros((11, 10, 3), np.uint8))), info("image"), LIMITS)


def test_image_files_are_bytes_or_base64_where_they_are_json() -> None:
    encoded = base64.b64encode(b"PNG!").decode()
    wanted = [EncodedImage(b"PNG!", LIMITS.max_image_pixels)] * 3
    files = texts(b"PNG!", encoded, f"data:image/png;base64,{encoded}", name="image")
    assert to_inputs(given(files), info("image"), LIMITS) == wanted
    with pytest.raises(UnusableItem, match="item 0: the image is not valid base64"):
        to_inputs(given(texts("not base64!", name="image")), info("image"), LIMITS)


def test_all_three_outputs_are_the_default() -> None:
    outputs = to_outputs(given(texts("a", "b")), info(), answer(LOGITS))
    assert [(tensor.name, tensor.datatype, tensor.shape, is_binary) for tensor, is_binary in outputs] == [
        ("scores", "FP32", (2, 3), False),
        ("logits", "FP32", (2, 3), False),
        ("label", "BYTES", (2,), False),
    ]
    scores, logits, label = (tensor.data for tensor, _ in outputs)
    np.testing.assert_allclose(scores.sum(axis=1), [1.0, 1.0], rtol=1e-6)
    assert np.array_equal(logits, LOGITS)
    assert label.tolist() == ["b", "a"]


def test_outputs_come_as_and_in_the_order_asked() -> None:
    asked = (RequestedOutput("label", True), RequestedOutput("logits", False))
    outputs = to_outputs(given(texts("a", "b"), outputs=asked), info(), answer(LOGITS))
    assert [(tensor.name, is_binary) for tensor, is_binary in outputs] == [("label", True), ("logits", False)]
    everything = to_outputs(given(texts("a"), is_binary_default=True), info(), answer(LOGITS[:1]))
    assert [is_binary for _, is_binary in everything] == [True, True, True]


@pytest.mark.parametrize(("asked", "given_back"), [(1, 1), (2, 2), (3, 3), (99, 3)])
def test_classification_gives_the_best_so_many(asked: int, given_back: int) -> None:
    request = given(texts("a", "b"), outputs=(RequestedOutput("logits", False, asked),))
    ((tensor, _),) = to_outputs(request, info(), answer(LOGITS))
    assert (tensor.name, tensor.datatype, tensor.shape) == ("logits", "BYTES", (2, given_back))
    best = [
        ["2.000000:1:b", "1.000000:2:c", "0.000000:0:a"],
        ["3.000000:0:a", "3.000000:2:c", "-1.000000:1:b"],
    ]
    assert tensor.data.tolist() == [row[:given_back] for row in best]


def test_classes_that_are_equal_keep_their_order() -> None:
    request = given(texts("a"), outputs=(RequestedOutput("logits", False, 50),))
    wide = replace(info(), labels=tuple(map(str, range(50))))
    ((tensor, _),) = to_outputs(request, wide, answer(np.tile(np.float32([1, 0]), 25)[np.newaxis]))
    assert [each.split(":")[2] for each in tensor.data[0]] == [*wide.labels[::2], *wide.labels[1::2]]


def test_classification_of_scores_activates() -> None:
    request = given(texts("a", "b"), outputs=(RequestedOutput("scores", False, 1),))
    ((tensor, _),) = to_outputs(request, info(problem="multi_label_classification"), answer(LOGITS))
    assert tensor.data[0, 0] == "0.880797:1:b"


def test_outputs_that_no_model_has_are_malformed() -> None:
    with pytest.raises(MalformedRequest, match="did you mean 'scores'"):
        check_outputs(given(outputs=(RequestedOutput("score", False),)), info())
    with pytest.raises(MalformedRequest, match="for scores and logits"):
        check_outputs(given(outputs=(RequestedOutput("label", False, 2),)), info())


def test_a_model_with_thresholds_tells_which_labels_reach_theirs() -> None:
    strict = replace(info(problem="multi_label_classification"), thresholds=(0.5, 0.9, 0.0))
    (*_, (tensor, _)) = to_outputs(
        given(texts("a", "b")), strict, answer(np.float32([[1, 2, -9], [-1, 3, 0]]))
    )
    assert (tensor.name, tensor.datatype) == ("assigned", "BOOL")
    assert tensor.data.tolist() == [[True, False, True], [False, True, True]]
    assert metadata(strict)["outputs"][-1] == {"name": "assigned", "datatype": "BOOL", "shape": [-1, 3]}
    check_outputs(given(outputs=(RequestedOutput("assigned", False),)), strict)
    with pytest.raises(MalformedRequest, match="there is no output 'assigned'"):
        check_outputs(given(outputs=(RequestedOutput("assigned", False),)), info())
    with pytest.raises(MalformedRequest, match="for scores and logits"):
        check_outputs(given(outputs=(RequestedOutput("assigned", False, 2),)), strict)


def test_metadata_has_the_labels_width_and_one_input() -> None:
    described = metadata(info())
    assert described["inputs"] == [{"name": "text", "datatype": "BYTES", "shape": [-1]}]
    assert described["outputs"][0] == {"name": "scores", "datatype": "FP32", "shape": [-1, 3]}
    assert (described["name"], described["versions"]) == ("m", ["1"])
    assert metadata(info("image"))["inputs"][0]["name"] == "image"
    assert {tensor["name"] for tensor in input_tensors(info("image"))} == {"image", "pixel_values"}
