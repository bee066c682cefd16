"""Which words carried an answer: the text without each of them, and how far the label's margin falls."""

import json

import numpy as np
import pytest

from fewshard_core.values import ModelInfo
from fewshard_serve.core import Classified, Timings
from fewshard_serve.errors import MalformedRequest, TooLarge, UnsupportedMedia
from fewshard_serve.protocol.explain import MAX_WORDS, ExplainResponse, encode_explain, parse_explain
from fewshard_serve.protocol.limits import Limits

SINGLE = "single_label_classification"


def info(problem_type=SINGLE, labels=("no", "yes"), task="text"):
    return ModelInfo("m", task, "dense", labels, problem_type, "a", "fp32", "cpu", 128)


def parse(text, model=None, **more):
    return parse_explain(json.dumps({"inputs": text, **more}).encode(), model or info(), Limits())


def explained(question, logits, model=None):
    answer = Classified(np.array(logits, np.float32), 9, Timings(0, 0, 0))
    return ExplainResponse.model_validate_json(encode_explain(question, model or info(), answer))


def test_each_word_is_left_out_once():
    question = parse(" a  fine\tfilm ")
    assert [one.text for one in question.inputs] == [" a  fine\tfilm ", " fine\tfilm", " a  film", " a  fine"]


def test_the_effect_is_the_fall_of_the_margin():
    found = explained(parse("not bad"), [[0, 2], [3, 0], [0, 1]])
    assert (found.label, found.margin) == ("yes", 2.0)
    assert [(word.word, word.start, word.end, word.effect) for word in found.words] == [
        ("not", 0, 3, 5.0),
        ("bad", 4, 7, 1.0),
    ]
    assert found.usage.items == 3


def test_another_label_may_be_asked_for():
    found = explained(parse("not bad", label="no"), [[0, 2], [3, 0], [0, 1]])
    assert (found.label, found.margin) == ("no", -2.0)
    assert [word.effect for word in found.words] == [-5.0, -1.0]
    assert found.score == pytest.approx(1 / (1 + np.exp(2)), rel=1e-5)


def test_labels_that_are_chosen_one_by_one_have_their_own_logit():
    model = info("multi_label_classification")
    found = explained(parse("x", model), [[-1, 2], [0, 1.5]], model)
    assert (found.margin, found.words[0].effect) == (2.0, 0.5)


def test_a_text_without_words_has_none():
    assert explained(parse("  "), [[0, 1]]).words == []


def test_what_cannot_be_explained():
    with pytest.raises(TooLarge, match=f"at most {MAX_WORDS}"):
        parse("a " * (MAX_WORDS + 1))
    with pytest.raises(MalformedRequest, match="yes"):
        parse("a", label="yess")
    with pytest.raises(MalformedRequest, match="'crane' is the name of 2 outputs of this model"):
        parse("a", info(labels=("crane", "cat", "crane")), label="crane")
    with pytest.raises(UnsupportedMedia):
        parse("a", info(task="image"))
    with pytest.raises(MalformedRequest, match="inputs"):
        parse(["a", "b"])
