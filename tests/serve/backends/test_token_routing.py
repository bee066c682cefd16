"""Where the tokens of a text went, told to those who ask; from request to answer, over a real model."""

import asyncio
import json

import numpy as np
import pytest

from fewshard_core.values import TextInput
from fewshard_serve.backends.load import load_model
from fewshard_serve.core import PredictionRequest
from fewshard_serve.engine import Engine
from fewshard_serve.errors import MalformedRequest
from fewshard_serve.protocol.classify import (
    MAX_ROUTED_ITEMS,
    ClassifyResponse,
    encode_classify,
    parse_classify,
    to_inputs,
)
from fewshard_serve.protocol.limits import Limits

TEXTS = ["a fine film", "two hours of my life that I want back", "a fine film"]


@pytest.fixture(scope="module")
def moe():
    return load_model("sst2-moe", "zoo:sst2-moe", "cpu", "fp32")


def classify(model, body):
    async def ask():
        engine = Engine([model], {}, lambda batch: None)
        inputs = to_inputs(request, model.info, Limits())
        answer = await engine.classify(model.info.name, PredictionRequest(inputs))
        await engine.drain(5)
        return answer

    request = parse_classify(json.dumps(body).encode(), Limits())
    return json.loads(encode_classify(request, model.info, asyncio.run(ask())))


def test_each_item_tells_its_own_tokens_in_the_callers_order(moe):
    before = moe.expert_counts()
    answer = classify(moe, {"inputs": TEXTS, "routing": True})
    ClassifyResponse.model_validate(answer)
    counted = moe.expert_counts().tokens - before.tokens
    num_layers, num_experts = counted.shape
    told = np.zeros_like(counted)
    for item in answer["routing"]:
        assert len(item["experts"]) == num_layers
        for layer, tokens in enumerate(item["experts"]):
            assert len(tokens) == len(item["tokens"])
            told[layer] += np.bincount(np.array(tokens).flatten(), minlength=num_experts)
    assert (told == counted).all()
    spelled = ["".join(item["tokens"]).replace("##", "") for item in answer["routing"]]
    assert "afinefilm" in spelled[0]
    assert "twohours" in spelled[1]
    assert answer["routing"][0] == answer["routing"][2]


def test_nobody_is_told_who_did_not_ask(moe):
    assert "routing" not in classify(moe, {"inputs": TEXTS})
    unasked, asked = (moe.prepare([TextInput("a film", wants_routing=wants)])[0] for wants in (False, True))
    moe.run([unasked, asked])
    assert unasked.routing is None
    assert asked.routing.experts


def test_a_model_without_experts_answers_without(moe):
    dense = load_model("sst2-dense", "zoo:sst2-dense", "cpu", "fp32")
    answer = classify(dense, {"inputs": "a fine film", "routing": True})
    assert "routing" not in answer
    assert answer["predictions"]


def test_routing_is_for_few_items(moe):
    body = json.dumps({"inputs": ["a"] * (MAX_ROUTED_ITEMS + 1), "routing": True}).encode()
    with pytest.raises(MalformedRequest, match="at most 8 items"):
        to_inputs(parse_classify(body, Limits()), moe.info, Limits())
