"""Which class an architecture gets, and what cannot be registered."""

from pathlib import Path

import pytest
from transformers import BertConfig

from fewshard_models.classifier.network import NetworkClassifier
from fewshard_models.classifier.registry import Registry
from fewshard_models.errors import CheckpointError


def whole(name, accepts=True):
    methods = {"run": lambda self, items: None, "load_network": None, "accepts": lambda config: accepts}
    return type(name, (NetworkClassifier,), methods)


@pytest.fixture
def registry():
    found = Registry()
    found.register("*ForSequenceClassification")(whole("General"))
    found.register("Bert*ForSequenceClassification")(whole("Berts"))
    found.register("BertForSequenceClassification")(whole("Bert"))
    found.register("PickyForSequenceClassification")(whole("Picky", accepts=False))
    return found


@pytest.mark.parametrize(
    ("architecture", "expected"),
    [
        ("BertForSequenceClassification", "Bert"),
        ("BertTinyForSequenceClassification", "Berts"),
        ("XForSequenceClassification", "General"),
        ("PickyForSequenceClassification", "General"),
    ],
)
def test_a_whole_name_goes_before_a_longer_and_a_shorter_pattern(registry, architecture, expected):
    assert registry.find([architecture], BertConfig(), Path("d")).__name__ == expected


@pytest.mark.parametrize("names", [["XForQuestionAnswering"], []])
def test_what_no_class_takes_is_refused_with_what_there_is(registry, names):
    with pytest.raises(
        CheckpointError, match=r"d holds .*; Fewshard serves \*ForSequenceClassification, Bert"
    ):
        registry.find(names, BertConfig(), Path("d"))


def test_a_name_is_registered_once(registry):
    with pytest.raises(ValueError, match="BertForSequenceClassification is registered already, for Bert"):
        registry.register("BertForSequenceClassification")(whole("Other"))


def test_a_class_that_is_not_whole_is_refused_at_once(registry):
    with pytest.raises(TypeError, match="Half lacks load_network, run"):
        registry.register("HalfForX")(type("Half", (NetworkClassifier,), {}))
