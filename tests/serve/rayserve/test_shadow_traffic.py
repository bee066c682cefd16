"""A shadow is asked a share of the same, compared by label, and never heard."""

import asyncio

import numpy as np
import pytest

from fewshard_core.values import ModelInfo, TextInput
from fewshard_serve.config import FewshardConfig, ShadowConfig
from fewshard_serve.config_file import only
from fewshard_serve.core import Caller, Classified, PredictionRequest, Timings
from fewshard_serve.errors import Overloaded
from fewshard_serve.rayserve.deployment_plan import plan_hosts
from fewshard_serve.rayserve.shadow_traffic import (
    CALLER,
    MAX_INFLIGHT,
    Shadow,
    ShadowModel,
    agreeing,
    is_comparable,
    shadow_elsewhere,
)

ASKED = PredictionRequest([TextInput("a"), TextInput("b")], timeout_s=0.5, caller=Caller("me"))


def info(name, labels=("no", "yes"), problem_type="single_label_classification"):
    return ModelInfo(name, "text", "dense", labels, problem_type, "a", "fp32", "cpu", 128)


def answer(*rows):
    return Classified(np.array(rows, np.float32), 1, Timings(0, 0, 0))


class Counted(dict):
    def __call__(self, model, shadow, outcome, num_items):
        self[model, shadow, outcome] = self.get((model, shadow, outcome), 0) + num_items


def follow(classify, shadow_info, share=1.0, times=1, main=None):
    """What was counted after `times` requests of two items, answered [0, 1] and [1, 0]."""

    async def work():
        counted = Counted()

        async def known():
            return shadow_info

        shadow = Shadow(
            ShadowConfig(model="other", share=share), main or info("m"), ShadowModel(known, classify), counted
        )
        for _ in range(times):
            shadow.follow(ASKED, answer([0, 1], [1, 0]))
        while any(not task.done() for task in shadow._tasks):
            await asyncio.sleep(0)
        return {outcome: number for (_, _, outcome), number in counted.items() if number}

    return asyncio.run(work())


def says(*rows):
    async def classify(request):
        return answer(*rows)

    return classify


def test_items_agree_or_not_by_label_whatever_their_order():
    assert follow(says([0, 2], [0, 2]), info("other")) == {"agree": 1, "disagree": 1}
    assert follow(says([2, 0], [0, 2]), info("other", ("yes", "no"))) == {"agree": 2}


def test_several_labels_agree_where_all_do():
    kinds = [info(name, problem_type="multi_label_classification") for name in ("m", "other")]
    first, second = answer([1, -1], [1, 1]), answer([3, -2], [1, -1])
    assert agreeing(kinds[0], first, kinds[1], second).tolist() == [True, False]


def test_outputs_of_one_name_are_not_taken_for_each_other():
    twins = info("m", ("crane", "crane"))
    assert agreeing(twins, answer([0, 1]), twins, answer([0, 1])).tolist() == [True]
    assert agreeing(twins, answer([0, 1]), twins, answer([1, 0])).tolist() == [False]
    assert not is_comparable(info("m", ("a", "a", "b")), info("other", ("a", "b", "a")))


@pytest.mark.parametrize("other", [None, info("other", ("a", "b")), info("other", problem_type="regression")])
def test_what_cannot_be_compared_is_skipped(other):
    assert follow(says([0, 1], [0, 1]), other) == {"skipped": 2}


def test_a_shadow_that_refuses_or_breaks_is_counted_and_nothing_else():
    async def busy(request):
        raise Overloaded("busy", 1.0)

    async def broken(request):
        raise RuntimeError("lost")

    for classify in (busy, broken):
        assert follow(classify, info("other")) == {"failed": 2}


def test_a_slow_shadow_holds_nothing_up():
    seen = []

    async def slow(request):
        seen.append(request)
        await asyncio.sleep(0.01)
        return answer([0, 1], [1, 0])

    assert follow(slow, info("other"), times=10) == {
        "agree": 2 * MAX_INFLIGHT,
        "skipped": 2 * (10 - MAX_INFLIGHT),
    }
    assert seen == [PredictionRequest(ASKED.inputs, timeout_s=None, caller=CALLER)] * MAX_INFLIGHT


def test_only_the_share_is_sent():
    assert follow(says([0, 1], [1, 0]), info("other"), share=0.0, times=50) == {}


def test_a_shadow_of_another_application_is_asked_there():
    class Calls:
        async def all(self, app, method, timeout_s):
            assert (app, method) == ("model-b", "model_states")
            return []

        async def one(self, app, method, model, request):
            assert (app, method, model, request) == ("model-b", "classify_for_gateway", "b", ASKED)
            return Overloaded("busy", 1.0)

    async def work():
        shadow = shadow_elsewhere("b", "model-b", Calls())
        assert await shadow.info() is None
        with pytest.raises(Overloaded):
            await shadow.classify(ASKED)

    asyncio.run(work())


def config(*models):
    return FewshardConfig.model_validate({"models": models})


def test_the_plan_knows_where_a_shadow_is():
    a = {"name": "a", "path": "x", "shadow": "b"}
    shared, own = plan_hosts(config(a, {"name": "b", "path": "x", "replicas": {"min": 1}}))
    assert shared.models[0].shadow == ShadowConfig(model="b", share=0.1)
    assert shared.models[0].shadow_app == "model-b"
    assert own.models[0].shadow is None


def test_a_model_served_without_its_shadow_has_none():
    a = {"name": "a", "path": "x", "shadow": {"model": "b", "share": 0.5}}
    whole = config(a, {"name": "b", "path": "x"})
    assert only(whole, ["a"]).models[0].shadow is None
    assert only(whole, ["a", "b"]).models[0].shadow.share == 0.5


@pytest.mark.parametrize("shadow", ["a", "nobody"])
def test_a_shadow_is_another_model(shadow):
    with pytest.raises(ValueError, match="must be another model"):
        config({"name": "a", "path": "x", "shadow": shadow}, {"name": "b", "path": "x"})


def test_shadows_have_no_shadows():
    with pytest.raises(ValueError, match="must have none itself"):
        config({"name": "a", "path": "x", "shadow": "b"}, {"name": "b", "path": "x", "shadow": "a"})
