"""Reranking and scoring in the shapes of text-embeddings-inference, Jina, Cohere, Infinity and vLLM."""

import math
from dataclasses import replace

import numpy as np
import pytest

from fewshard_core.values import ModelInfo
from fewshard_serve.core import Classified, Timings
from fewshard_serve.http.gateway import GatewayApp
from fewshard_serve.http.host import HostApp
from fewshard_serve.http.service import ModelEntry
from fewshard_serve.protocol.limits import Limits
from fewshard_serve.protocol.rerank import RerankResponse, ScoreResponse
from fewshard_serve.protocol.stats import ModelStatistics
from local_service import LocalService

QUERY, DOCUMENTS = "ab", ["one", "a", "seventeen"]
BEST_FIRST = [2, 0, 1]


class CrossEncoder:
    """The logit of a pair is the length of its second text, less 5."""

    room, ready, not_ready_reason = None, True, ""

    def __init__(self, name="judge", labels=("score",), task="text"):
        kind = "single_label_classification"
        self.info = ModelInfo(name, task, "dense", labels, kind, "x", "fp32", "cpu", 128)
        self.stats = ModelStatistics()
        self.calls = []

    def check_room(self, caller):
        pass

    async def classify(self, request):
        self.calls.append(request)
        logits = [[len(each.text_pair) - 5.0] * len(self.info.labels) for each in request.inputs]
        return Classified(np.float32(logits), 7 * len(logits), Timings(0.001, 0.002, 0.003))

    def experts(self):
        return None


@pytest.fixture
def judge():
    return CrossEncoder()


class Service:
    def __init__(self, *models):
        self.models = {model.info.name: model for model in models}

    async def model_index(self):
        return [ModelEntry(name, "READY", info=model.info) for name, model in self.models.items()]

    async def classify(self, model, request):
        return await self.models[model].classify(request)


@pytest.fixture
def ask(judge, call, counted_requests):
    """POST to the gateway, or to the host where the path names a model."""
    models = (judge, CrossEncoder("nli", ("a", "b", "c")), CrossEncoder("cifar", ("cat",), "image"))
    count = {"on_request": lambda *seen: counted_requests.append(seen[:3]), "limits": Limits(max_items=8)}
    gateway = GatewayApp(Service(*models), **count)
    host = HostApp(LocalService(Service(*models).models), **count)

    def post(path, **body):
        app = host if path.startswith("/v2/models") else gateway
        return call(app, "POST", path, json=body)

    return post


def sigmoid(logit):
    return 1 / (1 + math.exp(-logit))


def logits(order=BEST_FIRST):
    return [len(DOCUMENTS[index]) - 5.0 for index in order]


@pytest.mark.parametrize("path", ["/rerank?model=judge", "/v2/models/judge/rerank"])
def test_texts_are_answered_as_by_text_embeddings_inference(path, ask, judge, counted_requests):
    answer = ask(path, query=QUERY, texts=DOCUMENTS)
    assert answer.json() == [
        {"index": index, "score": pytest.approx(sigmoid(logit))}
        for index, logit in zip(BEST_FIRST, logits(), strict=True)
    ]
    assert answer.headers["x-compute-tokens"] == "21"
    assert answer.headers["x-compute-characters"] == str(3 * len(QUERY) + sum(map(len, DOCUMENTS)))
    (asked,) = judge.calls
    assert [(each.text, each.text_pair) for each in asked.inputs] == [(QUERY, each) for each in DOCUMENTS]
    assert counted_requests == [("judge", "rerank", "ok")]
    RerankResponse.model_validate(answer.json())


def test_its_options(ask, judge):
    options = {"raw_scores": True, "return_text": True, "truncate": False, "truncation_direction": "Right"}
    answer = ask("/v2/models/judge/rerank", query=QUERY, texts=DOCUMENTS, **options).json()
    assert answer[0] == {"index": 2, "score": 4.0, "text": "seventeen"}
    assert [each["score"] for each in answer] == logits()
    assert judge.calls[0].truncate is False


@pytest.mark.parametrize(
    ("path", "has_documents"),
    [
        ("/rerank", True),
        ("/v1/rerank", True),
        ("/v2/rerank", False),
        ("/v2/models/judge/rerank", True),
        ("/v2/models/judge/versions/1/rerank", True),
    ],
)
def test_documents_are_answered_as_by_jina_cohere_and_vllm(path, has_documents, ask):
    documents = [DOCUMENTS[0], {"text": DOCUMENTS[1]}, DOCUMENTS[2]]
    answer = ask(path, model="judge", query=QUERY, documents=documents, top_n=2)
    body = answer.json()
    assert [each["index"] for each in body["results"]] == BEST_FIRST[:2]
    assert body["results"][0]["relevance_score"] == pytest.approx(sigmoid(4))
    told = [each.get("document") for each in body["results"]]
    assert told == ([{"text": "seventeen"}, {"text": "one"}] if has_documents else [None, None])
    assert (body["model"], body["usage"]) == ("judge", {"prompt_tokens": 21, "total_tokens": 21})
    assert body["id"] == f"rerank-{answer.headers['x-request-id']}"
    RerankResponse.model_validate(body)
    for wished in (True, False):
        body = ask(path, model="judge", query=QUERY, documents=documents, return_documents=wished).json()
        assert ("document" in body["results"][0]) is wished


def test_options_of_vllm(ask):
    options = {"top_n": 0, "use_activation": False, "truncate_prompt_tokens": -1, "user": "me", "priority": 0}
    body = ask(
        "/v1/rerank", model="judge", query=QUERY, documents=DOCUMENTS, request_id="x", **options
    ).json()
    assert [each["relevance_score"] for each in body["results"]] == logits()
    assert body["id"] == "rerank-x"


def test_equal_scores_keep_the_order(ask):
    body = ask("/rerank", model="judge", query=QUERY, documents=["b", "c", "ab", "a"]).json()
    assert [each["index"] for each in body["results"]] == [2, 0, 1, 3]


@pytest.mark.parametrize("path", ["/score", "/v1/score", "/v2/models/judge/score"])
@pytest.mark.parametrize("names", [("text_1", "text_2"), ("queries", "documents")])
def test_one_text_is_scored_with_each(path, names, ask, judge, counted_requests):
    answer = ask(path, model="judge", **dict(zip(names, (QUERY, DOCUMENTS), strict=True)))
    body = ScoreResponse.model_validate(answer.json())
    assert [each.score for each in body.data] == pytest.approx([*map(sigmoid, logits([0, 1, 2]))])
    assert [each.index for each in body.data] == [0, 1, 2]
    assert [each.text for each in judge.calls[0].inputs] == [QUERY] * 3
    assert counted_requests == [("judge", "rerank", "ok")]


def test_pairs_are_scored_in_their_order(ask, judge):
    body = ask("/score", model="judge", text_1=["a", "b"], text_2=["cc", "dddd"], raw_scores=True).json()
    assert [each["score"] for each in body["data"]] == [-3.0, -1.0]
    assert [(each.text, each.text_pair) for each in judge.calls[0].inputs] == [("a", "cc"), ("b", "dddd")]


def test_a_score_that_is_no_probability_is_left_as_it_is(ask, judge):
    judge.info = replace(judge.info, problem_type="regression")
    answer = ask("/v2/models/judge/rerank", query=QUERY, texts=DOCUMENTS).json()
    assert [each["score"] for each in answer] == logits()


@pytest.mark.parametrize(
    ("path", "body", "status", "message"),
    [
        ("/rerank", {"query": "q", "documents": []}, 400, "the request has no items"),
        ("/rerank", {"query": "q"}, 400, "as `documents`, or as `texts`, not both"),
        ("/rerank", {"query": "q", "texts": ["a"], "documents": ["a"]}, 400, "not both"),
        ("/rerank", {"documents": ["a"]}, 400, "the key 'query' is missing"),
        ("/rerank", {"query": "q", "documents": ["a"], "top_n": -1}, 400, "'top_n'"),
        ("/rerank", {"query": "q", "documents": ["a"], "topn": 1}, 400, "did you mean 'top_n'"),
        ("/rerank", {"query": "q", "documents": ["a"], "max_tokens_per_doc": 9}, 400, "unknown key"),
        ("/rerank", {"query": "q", "documents": ["a"] * 9}, 413, "at most 8"),
        ("/rerank", {"query": "q", "texts": ["a"], "model": "nli"}, 400, "nli has 3 labels, and a cross-en"),
        ("/rerank", {"query": "q", "texts": ["a"], "model": "cifar"}, 415, "only texts can be ranked"),
        ("/v2/models/judge/rerank", {"query": "q", "texts": ["a"], "model": "nli"}, 400, "the path names"),
        ("/score", {"text_1": ["a", "b"], "text_2": ["c"]}, 400, "text_1 has 2 texts, text_2 has 1"),
        ("/score", {"text_1": "a"}, 400, "send text_2"),
        ("/score", {"text_1": "a", "text_2": "b", "queries": "c"}, 400, "another name of it"),
        ("/score", {"text_1": "a", "text_2": []}, 400, "'text_2'"),
        ("/score", {"text_1": "a", "text_2": "b", "model": "nli"}, 400, "nli has 3 labels"),
    ],
)
def test_what_cannot_be_ranked_is_refused_with_the_reason(path, body, status, message, ask, judge):
    answer = ask(path, **{"model": "judge", **body})
    told = answer.json()["error"]
    assert (answer.status_code, message in (told if isinstance(told, str) else told["message"])) == (
        status,
        True,
    ), answer.text
    assert judge.calls == []
