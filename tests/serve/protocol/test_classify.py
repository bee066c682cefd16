"""The friendly protocol: every shape of `inputs`, every mistake with its way out, and the ranked answer."""

import base64
import json
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from fewshard_core.values import EncodedImage, ModelInfo, ProblemType, Task, TextInput
from fewshard_serve.core import Classified, Timings
from fewshard_serve.errors import MalformedRequest, ServeError, TooLarge, UnsupportedMedia, UnusableItem
from fewshard_serve.protocol.classify import (
    ClassifyOptions,
    ClassifyRequest,
    ClassifyResponse,
    encode_classify,
    file_inputs,
    parse_classify,
    parse_gateway_classify,
    to_inputs,
)
from fewshard_serve.protocol.limits import Limits
from fewshard_serve.protocol.tasks import TASKS

IMAGE = TASKS.get("image")
LIMITS = Limits(max_items=4, max_text_bytes=100)


def info(task: Task = "text", problem: ProblemType = "single_label_classification") -> ModelInfo:
    return ModelInfo("m", task, "dense", ("a", "b", "c"), problem, "arch", "fp32", "cpu", 128)


def parse(document: object) -> ClassifyRequest:
    return parse_classify(json.dumps(document).encode(), LIMITS)


@pytest.mark.parametrize(
    ("inputs", "expected"),
    [
        ("x", [TextInput("x")]),
        ("", [TextInput("")]),
        (["x", "y"], [TextInput("x"), TextInput("y")]),
        ({"text": "x", "text_pair": "y"}, [TextInput("x", "y")]),
        ({"text": "x"}, [TextInput("x")]),
        ({"text": "x", "text_pair": None}, [TextInput("x")]),
        ([{"text": "x", "text_pair": "y"}, "z"], [TextInput("x", "y"), TextInput("z")]),
    ],
)
def test_every_shape_of_inputs(inputs: object, expected: list[TextInput]) -> None:
    assert to_inputs(parse({"inputs": inputs}), info(), LIMITS) == expected


def test_options_have_defaults_and_values() -> None:
    assert parse({"inputs": "x"}) == ClassifyRequest(inputs="x", top_k=None, raw_scores=False, truncate=True)
    said = parse({"inputs": "x", "top_k": 2, "raw_scores": True, "truncate": False})
    assert (said.top_k, said.raw_scores, said.truncate) == (2, True, False)


@pytest.mark.parametrize(
    ("document", "message"),
    [
        ({"inputs": "x", "topk": 1}, "did you mean 'top_k'"),
        ({"input": "x"}, "did you mean 'inputs'"),
        ({"inputs": [{"text": "x", "textpair": "y"}]}, "did you mean 'text_pair'"),
        ({"inputs": "x", "model": "m"}, "unknown key 'model'; known are"),
        ({}, "the key 'inputs' is missing"),
        ([], "must be a JSON object"),
        ("x", "must be a JSON object"),
        ({"inputs": 1}, "inputs must be a text"),
        ({"inputs": None}, "inputs must be a text"),
        ({"inputs": {"text": 1}}, "inputs must be a text"),
        ({"inputs": {"text_pair": "y"}}, "inputs must be a text"),
        ({"inputs": [["x"]]}, "item 0 cannot be read: inputs must be a text"),
        ({"inputs": ["x", 1]}, "item 1 cannot be read"),
        ({"inputs": "x", "top_k": 0}, "the key 'top_k' should be greater"),
        ({"inputs": "x", "top_k": "1"}, "the key 'top_k' should be a valid integer"),
        ({"inputs": "x", "top_k": 1.5}, "'top_k'"),
        ({"inputs": "x", "raw_scores": 1}, "'raw_scores'"),
        ({"inputs": "x", "truncate": "no"}, "'truncate'"),
    ],
)
def test_mistakes_name_the_way_out(document: object, message: str) -> None:
    with pytest.raises(MalformedRequest, match=message):
        parse(document)


@pytest.mark.parametrize(
    "body", [b"", b"{", b"\xff", b'{"inputs":"\xff"}', b'{"inputs":"\\ud800"}', b'{"inputs":"x"} x']
)
def test_what_is_not_json_is_malformed(body: bytes) -> None:
    with pytest.raises(MalformedRequest, match="not JSON"):
        parse_classify(body, LIMITS)


def test_limits_are_checked_where_they_can_first_be_known() -> None:
    with pytest.raises(TooLarge, match="5 items"):
        to_inputs(parse({"inputs": ["x"] * 5}), info(), LIMITS)
    with pytest.raises(TooLarge, match="values"):
        parse({"inputs": ["x"] * 1000})
    with pytest.raises(TooLarge, match="max_json_depth"):
        parse({"inputs": json.loads("[" * 50 + "]" * 50)})
    with pytest.raises(TooLarge, match="item 1: the text has 101 bytes"):
        to_inputs(parse({"inputs": ["x", {"text": "x", "text_pair": "y" * 101}]}), info(), LIMITS)


def test_a_list_of_the_wrong_kind_is_left_at_its_first_item() -> None:
    with pytest.raises(ValidationError) as caught:
        ClassifyRequest.model_validate_json(json.dumps({"inputs": [1] * 5000}))
    assert caught.value.error_count() < 10


def test_no_items_are_malformed() -> None:
    with pytest.raises(MalformedRequest, match="no items; send at least one"):
        to_inputs(parse({"inputs": []}), info(), LIMITS)


def test_images_are_base64_or_data_urls() -> None:
    encoded = base64.b64encode(b"PNG!?>").decode()
    wrapped = encoded[:3] + "\r\n" + encoded[3:]
    for text in (encoded, f"data:image/png;base64,{encoded}", f"data:;base64,{encoded}", wrapped):
        assert to_inputs(parse({"inputs": text}), info("image"), LIMITS) == [EncodedImage(b"PNG!?>")]


@pytest.mark.parametrize("text", ["é", "a", "ab=c", "data:image/png,abc", "data:image/png;base64,!", "data:"])
def test_an_image_that_cannot_be_unpacked_names_its_item(text: str) -> None:
    with pytest.raises(UnusableItem, match="item 1"):
        to_inputs(parse({"inputs": ["AAAA", text]}), info("image"), LIMITS)


def test_an_image_model_takes_no_pairs() -> None:
    with pytest.raises(MalformedRequest, match="item 0: an image model takes base64"):
        to_inputs(parse({"inputs": [{"text": "x"}]}), info("image"), LIMITS)


def test_a_bare_image_is_for_image_models() -> None:
    assert file_inputs(b"PNG", IMAGE, info("image"), LIMITS) == [
        EncodedImage(b"PNG", LIMITS.max_image_pixels)
    ]
    with pytest.raises(UnsupportedMedia, match="classifies text"):
        file_inputs(b"PNG", IMAGE, info(), LIMITS)


def test_the_gateway_takes_the_model_in_the_body() -> None:
    assert parse_gateway_classify(b'{"model": "m", "inputs": "x"}', LIMITS).model == "m"
    assert parse_gateway_classify(b'{"inputs": "x"}', LIMITS).model is None
    with pytest.raises(MalformedRequest, match="'model'"):
        parse_gateway_classify(b'{"model": 1, "inputs": "x"}', LIMITS)


def answer(
    options: ClassifyOptions, logits: list[list[float]], problem: ProblemType = "single_label_classification"
) -> dict[str, Any]:
    classified = Classified(np.array(logits, np.float32), 7, Timings(0.001, 0.0025, 0.0121234))
    body = encode_classify(options, info(problem=problem), classified)
    ClassifyResponse.model_validate_json(body, strict=True)
    document: dict[str, Any] = json.loads(body)
    return document


def test_the_answer_is_ranked_for_each_item() -> None:
    said = answer(ClassifyOptions(), [[0.0, 2.0, 1.0], [3.0, 1.0, 2.0]])
    assert [[each["label"] for each in item] for item in said["predictions"]] == [
        ["b", "c", "a"],
        ["a", "c", "b"],
    ]
    assert sum(each["score"] for each in said["predictions"][0]) == pytest.approx(1.0, abs=1e-6)
    assert said["model"] == "m"
    assert said["usage"] == {"items": 2, "tokens": 7}
    assert said["timings_ms"] == {"queue": 2.5, "preprocess": 1.0, "infer": 12.123}


@pytest.mark.parametrize(("top_k", "num_labels"), [(1, 1), (2, 2), (3, 3), (10, 3), (None, 3)])
def test_top_k_cuts_to_the_labels_there_are(top_k: int | None, num_labels: int) -> None:
    said = answer(ClassifyOptions(top_k=top_k), [[0.0, 2.0, 1.0]])
    assert len(said["predictions"][0]) == num_labels
    assert said["predictions"][0][0]["label"] == "b"


def test_labels_that_are_equal_keep_their_order() -> None:
    labels = tuple(map(str, range(50)))
    classified = Classified(np.tile(np.float32([1, 0]), 25)[np.newaxis], 1, Timings(0, 0, 0))
    body = encode_classify(ClassifyOptions(), replace(info(), labels=labels), classified)
    assert [each["label"] for each in json.loads(body)["predictions"][0]] == [*labels[::2], *labels[1::2]]


def test_raw_scores_are_logits() -> None:
    said = answer(ClassifyOptions(raw_scores=True), [[0.5, -2.0, 1.0]])
    assert said["predictions"] == [
        [{"label": "c", "score": 1.0}, {"label": "a", "score": 0.5}, {"label": "b", "score": -2.0}]
    ]


def test_the_activation_follows_the_problem_type() -> None:
    said = answer(ClassifyOptions(top_k=1), [[0.0, 0.0, 0.0]], "multi_label_classification")
    assert said["predictions"] == [[{"label": "a", "score": 0.5}]]


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


@given(
    st.dictionaries(st.sampled_from(["inputs", "top_k", "truncate", "model", "x"]), JSON_VALUES)
    | JSON_VALUES,
    st.sampled_from(["text", "image"]),
)
def test_no_body_raises_anything_but_our_errors(document: object, task: Task) -> None:
    with suppress(ServeError):
        assert to_inputs(parse(document), info(task), LIMITS)


@given(st.binary(max_size=60))
def test_no_bytes_raise_anything_but_our_errors(body: bytes) -> None:
    with pytest.raises(ServeError):
        parse_classify(body, LIMITS)


def answered(told: ModelInfo, *logits: Sequence[float]) -> dict[str, Any]:
    answer = Classified(np.float32(logits), 7, Timings(0.0, 0.0, 0.0))
    found = json.loads(encode_classify(ClassifyOptions(), told, answer))
    ClassifyResponse.model_validate(found)
    return dict(found)


def test_thresholds_say_which_labels_an_item_has() -> None:
    strict = replace(info(problem="multi_label_classification"), thresholds=(0.5, 0.9, 0.1))
    found = answered(strict, [1, 2, -1], [-1, -1, -9])
    assert found["assigned"] == [["a", "c"], []]
    assert [each["label"] for each in found["predictions"][0]] == ["b", "a", "c"]
    assert "assigned" not in answered(info(problem="multi_label_classification"), [1, 2, 0])


def test_a_regression_of_one_output_says_score() -> None:
    rating = replace(info(problem="regression"), labels=("LABEL_0",))
    assert answered(rating, [2.5], [-40.0])["scores"] == [2.5, -40.0]
    assert "scores" not in answered(replace(rating, problem_type="single_label_classification"), [2.5])
    assert "scores" not in answered(info(problem="regression"), [1, 2, 3])
