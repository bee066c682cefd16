"""The addresses at which clients of other servers ask: Hugging Face's, SageMaker's, OpenAI's, vLLM's."""

import base64
import json
from collections.abc import Callable
from typing import Any

import httpx
import pytest

from fewshard_core.values import EncodedImage, TextInput
from fewshard_serve import __version__
from fewshard_serve.http.gateway import GatewayApp
from fewshard_serve.http.host import HostApp
from fewshard_serve.protocol.tei import ModelInfoBody, PredictResponse
from fewshard_serve.protocol.vllm import OpenAiModel, OpenAiModels, VllmClassifyResponse

Call = Callable[..., httpx.Response]
Model = Any

PNG = b"\x89PNG\r\n\x1a\n and so on"
CURLS = "application/x-www-form-urlencoded"
"""What curl says of every body, unless it is told otherwise."""
HERE = ["/?model=sst2", "/invocations?model=sst2", "/v2/models/sst2"]
"""Where clients of Hugging Face's pipelines ask."""


@pytest.fixture
def ask(host: HostApp, gateway: GatewayApp, call: Call) -> Call:
    def send(path: str, body: Any = None, **request: Any) -> httpx.Response:
        app = host if path.startswith("/v2/models") else gateway
        return call(app, "POST", path, **({"json": body} if body is not None else {}), **request)

    return send


@pytest.mark.parametrize("path", HERE)
def test_a_text_as_text_embeddings_inference_takes_it(ask: Call, text_model: Model, path: str) -> None:
    answer = ask(path, {"inputs": "abc", "raw_scores": True, "truncate": False})
    assert answer.json() == [{"label": "negative", "score": 3.0}, {"label": "positive", "score": 0.0}]
    assert text_model.calls[0]["truncate"] is False
    batch = ask(path, {"inputs": [["abc"], ["a", "b"]]}).json()
    PredictResponse.model_validate(batch)
    assert text_model.calls[1]["inputs"] == [TextInput("abc"), TextInput("a", "b")]


@pytest.mark.parametrize("path", HERE)
def test_a_text_as_inference_client_sends_it(ask: Call, text_model: Model, path: str) -> None:
    """It takes the first of the lists that it gets."""
    (labels,) = ask(path, {"inputs": "abc", "parameters": {}}).json()
    assert [each["label"] for each in labels] == ["negative", "positive"]
    parameters = {"top_k": 1, "function_to_apply": "none", "truncation": False}
    assert ask(path, {"inputs": "abc", "parameters": parameters}).json() == [
        [{"label": "negative", "score": 3.0}]
    ]
    assert text_model.calls[1]["truncate"] is False
    (sigmoids,) = ask(path, {"inputs": "abc", "parameters": {"function_to_apply": "sigmoid"}}).json()
    assert sigmoids[1] == {"label": "positive", "score": 0.5}


@pytest.mark.parametrize("path", HERE)
@pytest.mark.parametrize("inputs", [["a", "b"], ["a"]])
def test_a_list_that_two_clients_mean_differently_is_refused(ask: Call, path: str, inputs: list[str]) -> None:
    answer = ask(path, {"inputs": inputs})
    assert answer.status_code == 400
    assert "one pair or several texts" in answer.json()["error"]


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ({"inputs": "a", "parameters": {"top": 1}}, "unknown key 'top'; did you mean 'top_k'?"),
        ({"inputs": "a", "parameters": {"top_k": 0}}, "'parameters.top_k' should be greater than or equal"),
        ({"inputs": "a", "parameters": {"function_to_apply": "relu"}}, "'parameters.function_to_apply'"),
        ({"inputs": "a", "raw_scores": True, "parameters": {"function_to_apply": "softmax"}}, "contradict"),
        ({"inputs": "a", "options": {"use_cache": False}}, "unknown key 'options'"),
        ({"inputs": "a", "truncation_direction": "left"}, "'truncation_direction'"),
        ({"inputs": ["a", "b"], "parameters": {}}, "one pair or several texts"),
    ],
)
def test_options_are_heard_or_refused(ask: Call, body: dict[str, Any], words: str) -> None:
    for path in (*HERE, "/predict?model=sst2"):
        answer = ask(path, body)
        assert (answer.status_code, answer.json()["error_type"]) == (400, "Validation")
        assert words in answer.json()["error"]


@pytest.mark.parametrize("path", ["/?model=cifar", "/invocations?model=cifar", "/v2/models/cifar"])
def test_an_image_as_inference_client_sends_it(ask: Call, image_model: Model, path: str) -> None:
    bare = ask(path, content=PNG, headers={"Content-Type": "image/png"})
    PredictResponse.model_validate(bare.json())
    assert len(bare.json()) == 3
    encoded = base64.b64encode(PNG).decode()
    best = ask(path, {"inputs": encoded, "parameters": {"top_k": 1, "function_to_apply": "softmax"}})
    assert best.json() == bare.json()[:1]
    assert [each["inputs"] for each in image_model.calls] == [[EncodedImage(PNG)]] * 2
    several = ask(path, {"inputs": [[encoded], [encoded]]})
    assert (several.status_code, "/v2/models/cifar/classify" in several.json()["error"]) == (400, True)


@pytest.mark.parametrize(
    "media_type", [None, "application/octet-stream", "application/x-www-form-urlencoded"]
)
@pytest.mark.parametrize(
    "path", ["/v2/models/cifar/classify", "/classify?model=cifar", "/v2/models/cifar", "/?model=cifar"]
)
def test_an_image_is_known_by_its_first_bytes(
    ask: Call, image_model: Model, path: str, media_type: str | None
) -> None:
    headers = {} if media_type is None else {"Content-Type": media_type}
    assert ask(path, content=PNG, headers=headers).status_code == 200
    (asked,) = image_model.calls
    assert asked["inputs"] == [EncodedImage(PNG)]


def test_an_image_for_a_model_of_texts_is_refused_as_such(ask: Call) -> None:
    answer = ask("/v2/models/sst2/classify", content=PNG)
    assert (answer.status_code, "classifies text" in answer.json()["error"]) == (415, True)


def test_sagemaker_may_ask_as_vllm_does(ask: Call, text_model: Model) -> None:
    answer = ask("/invocations", {"model": "sst2", "input": ["abc"]})
    assert VllmClassifyResponse.model_validate(answer.json()).data[0].label == "negative"
    neither = ask("/invocations", {"model": "sst2", "instances": ["abc"]})
    assert (neither.status_code, "send `inputs`" in neither.json()["error"]) == (400, True)


@pytest.mark.parametrize(
    ("path", "body"),
    [("/classify", {"inputs": "a"}), ("/v1/classify", {"input": "a"}), ("/invocations", {"input": "a"})],
)
def test_the_query_may_name_the_model(ask: Call, text_model: Model, path: str, body: dict[str, Any]) -> None:
    assert ask(f"{path}?model=sst2", body).status_code == 200
    assert len(text_model.calls) == 1


@pytest.mark.parametrize(
    "path", ["/v2/models/sst2/classify", "/classify", "/predict", "/", "/invocations", "/v2/models/sst2"]
)
@pytest.mark.parametrize("option", ["top_k=1", "raw_scores=true", "truncate=false"])
def test_options_beside_json_are_refused_in_the_query(
    ask: Call, text_model: Model, path: str, option: str
) -> None:
    answer = ask(f"{path}?{option}", {"inputs": "a"})
    assert (answer.status_code, "put options into the JSON" in answer.json()["error"]) == (400, True)
    assert not text_model.calls


def test_body_and_query_name_one_model(ask: Call) -> None:
    for path, key in (("/classify", "inputs"), ("/predict", "inputs"), ("/v1/classify", "input")):
        assert ask(f"{path}?model=sst2", {key: "a", "model": "sst2"}).status_code == 200
        assert ask(f"{path}?model=sst2", {key: "a", "model": "cifar"}).status_code == 400


def test_path_and_request_name_one_model(ask: Call, text_model: Model) -> None:
    path = "/v2/models/sst2"
    assert ask(path, {"inputs": "a", "model": "cifar"}).status_code == 400
    assert ask(f"{path}/classify?model=cifar", {"inputs": "a"}).status_code == 400
    assert ask("/v2/models/cifar?model=sst2", content=PNG).status_code == 400
    assert not text_model.calls
    assert ask(f"{path}?model=sst2", {"inputs": "a", "model": "sst2"}).status_code == 200


@pytest.mark.parametrize("path", ["/", "/invocations"])
def test_one_of_several_models_must_be_named(ask: Call, path: str) -> None:
    answer = ask(path, {"inputs": "a"})
    assert answer.status_code == 400
    assert "?model=<name>; there are: cifar, slow, sst2" in answer.json()["error"]
    assert ask(path, {"inputs": "a", "model": "sst2"}).status_code == 200
    assert ask(path, content=PNG).status_code == 400


def test_health_where_others_have_it(gateway: GatewayApp, call: Call) -> None:
    for path in ("/ping", "/health"):
        assert call(gateway, "GET", path).status_code == 503
    gateway._service.waiting = []  # type: ignore[attr-defined]  # the fake's own field
    for path in ("/ping", "/health"):
        assert call(gateway, "GET", path).status_code == 200
        assert call(gateway, "HEAD", path).status_code == 200
    assert call(gateway, "GET", "/version").json() == {"version": __version__}


def test_one_model_as_text_embeddings_inference_describes_it(gateway: GatewayApp, call: Call) -> None:
    info = call(gateway, "GET", "/info?model=sst2").json()
    ModelInfoBody.model_validate(info)
    assert info["model_type"] == {
        "classifier": {
            "id2label": {"0": "negative", "1": "positive"},
            "label2id": {"negative": 0, "positive": 1},
        }
    }
    assert (info["model_dtype"], info["max_input_length"], info["auto_truncate"]) == ("float32", 128, True)
    assert call(gateway, "GET", "/info").status_code == 400
    assert call(gateway, "GET", "/info?model=x").status_code == 404
    assert call(gateway, "GET", "/info?model=slow").status_code == 503


def test_the_models_as_openai_lists_them(gateway: GatewayApp, call: Call) -> None:
    listed = OpenAiModels.model_validate(call(gateway, "GET", "/v1/models").json())
    assert [each.id for each in listed.data] == ["sst2", "cifar"], "a model that loads is not offered"
    assert OpenAiModel.model_validate(call(gateway, "GET", "/v1/models/sst2").json()) == listed.data[0]
    unknown = call(gateway, "GET", "/v1/models/x")
    assert (unknown.status_code, unknown.json()["error"]["code"]) == (404, 404)


def test_the_statistics_of_all_models_where_none_share_a_host(gateway: GatewayApp, call: Call) -> None:
    body = call(gateway, "GET", "/v2/models/stats").json()
    assert [entry["name"] for entry in body["model_stats"]] == ["sst2", "cifar"]


def test_the_configuration_has_tritons_keys(host: HostApp, call: Call) -> None:
    config = call(host, "GET", "/v2/models/cifar/config").json()
    assert config["max_batch_size"] == config["limits"]["max_items"] == 64
    assert config["input"] == [{"name": "image", "data_type": "TYPE_UINT8", "dims": [-1, -1, 3]}]
    assert config["output"][0] == {"name": "scores", "data_type": "TYPE_FP32", "dims": [3]}
    texts = call(host, "GET", "/v2/models/sst2/config").json()
    assert texts["input"] == [{"name": "text", "data_type": "TYPE_STRING", "dims": [-1]}]
    assert texts["max_batch_size"] == 0, "a tensor that is nothing but a batch is described whole"
    assert texts["output"][0]["dims"] == [-1, 2]


@pytest.mark.parametrize(
    ("options", "wants_logits"),
    [
        ({"activation": False}, True),
        ({"softmax": False}, True),
        ({"use_activation": None, "activation": True}, False),
        ({"encoding_format": "float", "priority": None, "user": None, "truncation_side": "right"}, False),
        ({"padding": "do_not_pad", "cache_salt": "x", "mm_processor_kwargs": None}, False),
    ],
)
def test_options_of_vllm_are_heard(ask: Call, options: dict[str, Any], wants_logits: bool) -> None:
    answer = ask("/v1/classify", {"model": "sst2", "input": "abc", **options}).json()
    assert (answer["data"][0]["probs"] == [3.0, 0.0]) is wants_logits


def test_vllm_answers_under_the_clients_id(ask: Call) -> None:
    answer = ask("/v1/classify", {"model": "sst2", "input": "abc", "request_id": "mine"})
    assert answer.json()["id"] == "classify-mine"


@pytest.mark.parametrize(
    "options",
    [
        {"truncate_prompt_tokens": 16},
        {"truncation_side": "left"},
        {"add_special_tokens": False},
        {"padding": "max_length"},
        {"encoding_format": "base64"},
        {"priority": 5},
        {"mm_processor_kwargs": {"x": 1}},
        {"messages": []},
        {"dimensions": 3},
        {"use_activation": True, "activation": False},
    ],
)
def test_other_options_of_vllm_are_refused_by_name(ask: Call, options: dict[str, Any]) -> None:
    answer = ask("/v1/classify", {"model": "sst2", "input": "abc", **options})
    assert answer.status_code == 400
    assert next(iter(options)) in answer.json()["error"]["message"]


def test_the_two_bodies_named_input_and_inputs_are_told_apart(ask: Call) -> None:
    answer = ask("/classify", {"model": "sst2", "input": "abc"})
    assert (answer.status_code, "POST /v1/classify" in answer.json()["error"]) == (400, True)


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/classify", {"model": "sst2", "inputs": "a", "top_k": None, "raw_scores": None, "truncate": None}),
        ("/v2/models/sst2/classify", {"inputs": "a", "routing": None}),
        ("/predict", {"model": "sst2", "inputs": "a", "raw_scores": None, "truncation_direction": None}),
        ("/predict?model=sst2", {"inputs": "a", "model": None, "parameters": None}),
        ("/v1/classify", {"model": "sst2", "input": "a", "add_special_tokens": None, "request_id": None}),
        ("/v2/models/sst2/explain", {"inputs": "a", "label": None}),
        ("/v2/repository/index", {"ready": None}),
    ],
)
def test_null_stands_for_an_absent_key(ask: Call, text_model: Model, path: str, body: Any) -> None:
    first = ask(path, body)
    assert first.status_code == 200
    plain = ask(path, {key: value for key, value in body.items() if value is not None})
    assert json.loads(first.content).keys() == plain.json().keys() if isinstance(plain.json(), dict) else True
    assert len({call["truncate"] for call in text_model.calls}) <= 1
