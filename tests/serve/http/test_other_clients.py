"""Bodies as the documentation of text-embeddings-inference and of vLLM has them."""

import pytest

from fewshard_serve.http.host import HostApp
from fewshard_serve.protocol.tei import PredictErrorBody, PredictResponse
from fewshard_serve.protocol.vllm import VllmClassifyResponse, VllmErrorBody
from local_service import LocalService


def predict(call, app, body, path="/predict?model=sst2", **headers):
    return call(app, "POST", path, json=body, headers=headers)


def test_a_single_text(gateway, call, text_model):
    answer = predict(call, gateway, {"inputs": "I like you."})
    assert answer.status_code == 200
    labels = answer.json()
    assert [list(each) for each in labels] == [["label", "score"]] * 2
    assert [each["score"] for each in labels] == sorted((each["score"] for each in labels), reverse=True)
    assert text_model.calls[0]["truncate"] is True
    PredictResponse.model_validate(labels)


def test_a_list_of_two_texts_is_one_pair(gateway, call, text_model):
    answer = predict(call, gateway, {"inputs": ["I like you.", "I hate pineapples"], "raw_scores": True})
    (item,) = text_model.calls[0]["inputs"]
    assert (item.text, item.text_pair) == ("I like you.", "I hate pineapples")
    assert answer.json() == [{"label": "negative", "score": 11.0}, {"label": "positive", "score": 0.0}]


def test_a_list_of_lists_is_a_batch(gateway, call, text_model):
    answer = predict(call, gateway, {"inputs": [["I like you."], ["I hate pineapples"], ["a", "b"]]})
    pairs = [(each.text, each.text_pair) for each in text_model.calls[0]["inputs"]]
    assert pairs == [("I like you.", None), ("I hate pineapples", None), ("a", "b")]
    assert [len(each) for each in answer.json()] == [2, 2, 2]
    PredictResponse.model_validate(answer.json())


def test_a_list_of_one_text_is_that_text(gateway, call, text_model):
    assert isinstance(predict(call, gateway, {"inputs": ["one"]}).json()[0], dict)


@pytest.mark.parametrize(
    ("options", "truncate"),
    [({"truncate": False}, False), ({"truncate": None}, True), ({"truncate": True}, True)],
)
def test_truncation_is_on_unless_it_is_turned_off(gateway, call, text_model, options, truncate):
    predict(call, gateway, {"inputs": "a", "truncation_direction": "Right", **options})
    assert text_model.calls[0]["truncate"] is truncate


def test_the_headers_tell_where_the_time_went(gateway, call):
    headers = predict(call, gateway, {"inputs": [["ab"], ["c", "d"]]}).headers
    assert headers["x-compute-characters"] == "4"
    assert headers["x-compute-tokens"] == "10"
    assert headers["x-compute-type"] == "cpu"
    times = {headers[f"x-{name}-time"] for name in ("compute", "total", "tokenization", "queue", "inference")}
    assert all(time.isdigit() for time in times)
    assert (headers["x-tokenization-time"], headers["x-queue-time"], headers["x-inference-time"]) == (
        "1",
        "2",
        "3",
    )


@pytest.mark.parametrize(
    ("body", "status", "error_type"),
    [
        ({"inputs": []}, 400, "Validation"),
        ({"inputs": [[]]}, 400, "Validation"),
        ({"inputs": ["a", "b", "c"]}, 400, "Validation"),
        ({"inputs": ["a", ["b"]]}, 400, "Validation"),
        ({"inputs": 3}, 400, "Validation"),
        ({"inputs": "a", "truncation_direction": "left"}, 400, "Validation"),
        ({}, 400, "Validation"),
        ({"inputs": "unusable"}, 422, "Validation"),
        ({"inputs": "overloaded"}, 429, "Overloaded"),
        ({"inputs": "draining"}, 503, "Unhealthy"),
        ({"inputs": "broken"}, 500, "Backend"),
        ({"inputs": "bug"}, 500, "Backend"),
        ({"inputs": [["x"]] * 65}, 413, "Validation"),
    ],
)
def test_errors_say_their_type_too(gateway, call, body, status, error_type):
    answer = predict(call, gateway, body)
    assert (answer.status_code, answer.json()["error_type"]) == (status, error_type)
    PredictErrorBody.model_validate(answer.json())


def test_a_host_answers_as_a_server_of_its_own(host, call, counted_requests):
    """Its clients take the model's URL as their server's."""
    assert (
        predict(call, host, {"inputs": "ab"}, path="/v2/models/sst2/predict").json()[0]["label"] == "negative"
    )
    refused = predict(call, host, {"inputs": "ab"}, path="/v2/models/cifar/predict")
    assert (refused.status_code, refused.json()["error_type"]) == (415, "Validation")
    assert counted_requests == [("sst2", "tei", "ok"), ("cifar", "tei", "unsupported_media")]


def test_with_several_models_one_must_be_named(gateway, call, counted_requests):
    answer = predict(call, gateway, {"inputs": "a"}, path="/predict")
    assert answer.status_code == 400
    assert "cifar, slow, sst2" in answer.json()["error"]
    assert predict(call, gateway, {"inputs": "a", "model": "sst2"}, path="/predict").status_code == 200
    assert predict(call, gateway, {"inputs": "a"}, path="/predict?model=x").status_code == 404
    assert [outcome for _, _, outcome in counted_requests] == ["malformed", "ok", "unknown_model"]


def test_the_only_model_needs_no_name(gateway, call, text_model):
    gateway._service.models, gateway._service.waiting = {"sst2": text_model}, []
    assert predict(call, gateway, {"inputs": "a"}, path="/predict").status_code == 200
    assert classify(call, gateway, {"input": "a"}).json()["model"] == "sst2"


def test_what_it_does_not_hear_is_refused(gateway, call):
    answer = predict(call, gateway, {"inputs": "a", "something": 1})
    assert (answer.status_code, answer.json()["error_type"]) == (400, "Validation")
    assert "unknown key 'something'" in answer.json()["error"]


def classify(call, app, body):
    return call(app, "POST", "/v1/classify", json=body)


VLLM = {"model": "sst2", "input": ["Loved the new café", "abc"], "user": "me", "priority": 0}


def test_vllm_scores_are_in_the_order_of_the_labels(gateway, call, text_model, counted_requests):
    answer = classify(call, gateway, VLLM)
    body = VllmClassifyResponse.model_validate(answer.json())
    assert body.id == f"classify-{answer.headers['x-request-id']}"
    assert [each.index for each in body.data] == [0, 1]
    assert [each.label for each in body.data] == ["negative", "negative"]
    assert all(each.probs[0] > each.probs[1] and each.num_classes == 2 for each in body.data)
    assert sum(body.data[0].probs) == pytest.approx(1)
    assert body.usage.prompt_tokens == body.usage.total_tokens == 10
    assert text_model.calls[0]["truncate"] is False, "what is too long is refused there, unless asked"
    assert counted_requests == [("sst2", "vllm", "ok")]


def test_vllm_options(gateway, call, text_model):
    raw = classify(call, gateway, {**VLLM, "use_activation": False, "truncate_prompt_tokens": -1}).json()
    assert raw["data"][1]["probs"] == [3.0, 0.0]
    assert text_model.calls[0]["truncate"] is True


@pytest.mark.parametrize(
    ("changed", "status", "kind"),
    [
        ({"input": [1, 2, 3]}, 400, "malformed"),
        ({"input": []}, 400, "malformed"),
        ({"input": None}, 400, "malformed"),
        ({"truncate_prompt_tokens": 7}, 400, "malformed"),
        ({"model": "x"}, 404, "unknown_model"),
        ({"model": "slow"}, 503, "not_ready"),
        ({"model": None}, 400, "malformed"),
        ({"model": "cifar"}, 415, "unsupported_media"),
        ({"input": "overloaded"}, 429, "overloaded"),
        ({"input": "bug"}, 500, "internal"),
    ],
)
def test_vllm_errors_have_its_shape(gateway, call, changed, status, kind):
    answer = classify(call, gateway, {**VLLM, **changed})
    error = VllmErrorBody.model_validate(answer.json()).error
    assert (answer.status_code, error.code, error.type) == (status, status, kind)
    assert ("retry-after" in answer.headers) == (status in (429, 503))


def test_a_wrong_method_has_the_shape_of_the_server(gateway, call):
    assert call(gateway, "GET", "/v1/classify").json()["code"] == "method_not_allowed"


def test_a_refusal_before_the_body_is_read_has_the_shape_too(text_model, call):
    text_model.is_full = True
    app = HostApp(LocalService({"sst2": text_model}))
    answer = predict(call, app, {"inputs": "a"}, path="/v2/models/sst2/predict")
    assert (answer.status_code, answer.json()["error_type"]) == (429, "Overloaded")
