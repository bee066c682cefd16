"""Thresholds by label: from the configuration to a model's description, or a refusal at load."""

import numpy as np
import pytest

from fewshard_core.activation import assigned
from fewshard_core.values import ModelInfo
from fewshard_serve.config import FewshardConfig
from fewshard_serve.core import Classified, Timings
from fewshard_serve.engine.settings import EngineSettings
from fewshard_serve.errors import StartError
from fewshard_serve.rayserve.deployment_plan import HostSpec, ModelSpec, plan_hosts
from fewshard_serve.rayserve.model_loader import LoadFailure, load_models, with_thresholds
from fewshard_serve.rayserve.shadow_traffic import agreeing


def info(problem="multi_label_classification", labels=("toxic", "insult", "threat")):
    return ModelInfo("m", "text", "dense", labels, problem, "x", "fp32", "cpu", 128)


def test_labels_without_a_threshold_keep_the_usual_one():
    found = with_thresholds(info(), {"threat": 0.2})
    assert found.thresholds == (0.5, 0.5, 0.2)
    assert assigned(np.float32([[0.5, 0.49, 0.2]]), found).tolist() == [[True, False, True]]
    assert with_thresholds(info(), {}) == info()
    assert with_thresholds(info(None, ("spam",)), {"spam": 0.9}).thresholds == (0.9,)


@pytest.mark.parametrize(
    ("told", "message"),
    [
        (info(), "thresholds names the label 'treat', which 'm' does not have; did you mean 'threat'"),
        (
            info("single_label_classification", ("treat", "b")),
            "stand for themselves, and 'm' is single_label",
        ),
        (info("regression", ("treat",)), "stand for themselves, and 'm' is regression with 1 labels"),
    ],
)
def test_what_cannot_have_them_is_refused(told, message):
    with pytest.raises(StartError, match=message):
        with_thresholds(told, {"treat": 0.3})


def test_a_model_whose_labels_do_not_fit_is_not_served(tmp_path):
    config = FewshardConfig.model_validate(
        {"models": [{"name": "m", "path": "x", "thresholds": {"yes": 0.3}}]}
    )
    (host,) = plan_hosts(config)
    assert host.models[0].thresholds == {"yes": 0.3}
    spec = ModelSpec("m", "x", "cpu", "fp32", EngineSettings(), thresholds={"maybe": 0.3})

    class Process:
        def load(self, loading):
            from fake_models import FakeModel

            return FakeModel("m", "dense")

    (failure,) = load_models(HostSpec("models", "/v2/models", (spec,)), Process())
    assert isinstance(failure, LoadFailure)
    assert failure.reason == "thresholds names the label 'maybe', which 'm' does not have; known are: no, yes"


@pytest.mark.parametrize("share", [-0.1, 1.1, "half", True])
def test_a_threshold_is_a_share(share):
    with pytest.raises(ValueError, match="thresholds"):
        FewshardConfig.model_validate({"models": [{"name": "m", "path": "x", "thresholds": {"a": share}}]})


def test_a_shadow_agrees_by_the_thresholds():
    strict = with_thresholds(info(labels=("a",)), {"a": 0.9})
    answers = [Classified(np.float32([[logit]]), 1, Timings(0, 0, 0)) for logit in (1.0, 3.0)]
    assert not agreeing(strict, answers[0], strict, answers[1])[0]
    assert agreeing(info(labels=("a",)), answers[0], info(labels=("a",)), answers[1])[0]
