"""A cascade over stages that are functions: who is asked for what, and what comes of it."""

import asyncio

import numpy as np
import pytest

from fewshard_core.values import ModelInfo, TextInput
from fewshard_serve.cascade import Cascade, Spent, confidence
from fewshard_serve.core import Caller, Classified, PredictionRequest, Timings
from fewshard_serve.errors import DeadlineExceeded, NotReady, Overloaded

CALLER = Caller("me")


ONE_OF = "single_label_classification"


def info_of(name, labels=("no", "yes"), problem_type=ONE_OF, task="text", **card):
    return ModelInfo(name, task, "dense", labels, problem_type, "x", "fp32", "cpu", 128, card=card)


class Stages:
    """Each text is "stage=logit stage=logit": the first label's logit at each; the second's is 0."""

    def __init__(self):
        self.asked = []
        self.answers = {}

    async def ask(self, model, request):
        inputs = request.inputs
        texts = [one.text for one in inputs]
        self.asked.append((model, texts, request.truncate, request.timeout_s, request.caller))
        if model in self.answers:
            raise self.answers[model]
        logits = [[dict(part.split("=") for part in one.text.split())[model], 0.0] for one in inputs]
        return Classified(np.array(logits, np.float32), 10 * len(inputs), Timings(0.001, 0.002, 0.004))


class Made:
    def __init__(self, infos=None, accept_above=(0.9,), names=("cheap", "dear")):
        self.stages, self.seen = Stages(), []
        self.cascade = Cascade(
            "both", names, accept_above, self.stages.ask, lambda *seen: self.seen.append(seen)
        )
        if infos is None:
            infos = [info_of(name, macs=10.0 * 10**n) for n, name in enumerate(names)]
        self.cascade.set_stages(infos)

    def classify(self, *texts, **options):
        request = PredictionRequest([TextInput(text) for text in texts], caller=CALLER, **options)
        return asyncio.run(self.cascade.classify(request))


SURE, UNSURE = "cheap=5 dear=-1", "cheap=1 dear=-3"


def test_only_unsure_items_go_on_and_come_back_in_their_places():
    made = Made()
    answer = made.classify(UNSURE, SURE, UNSURE, SURE)
    assert made.stages.asked == [
        ("cheap", [UNSURE, SURE, UNSURE, SURE], True, None, CALLER),
        ("dear", [UNSURE, UNSURE], True, None, CALLER),
    ]
    assert answer.stages == ("dear", "cheap", "dear", "cheap")
    assert answer.logits.tolist() == [[-3, 0], [5, 0], [-3, 0], [5, 0]]
    assert answer.num_tokens == 60
    assert answer.timings == Timings(0.002, 0.004, 0.008)


def test_stages_are_told_that_a_cascade_asks(monkeypatch):
    made, asked = Made(), []
    ask = made.stages.ask
    monkeypatch.setattr(
        made.cascade,
        "_ask",
        lambda model, request: asked.append(request.is_of_cascade) or ask(model, request),
    )
    made.classify(UNSURE, SURE)
    assert asked == [True, True]


def test_where_all_are_sure_the_next_is_not_asked():
    made = Made()
    assert made.classify(SURE, SURE).stages == ("cheap", "cheap")
    assert [asked[0] for asked in made.stages.asked] == ["cheap"]


def test_what_was_spent_is_told():
    made = Made()
    made.classify(UNSURE, SURE, UNSURE, SURE)
    ((classified, spent),) = made.seen
    assert classified.stages.count("dear") == 2
    assert spent == Spent({"cheap": 2, "dear": 2}, macs=4 * 10 + 2 * 100, macs_of_last=4 * 100)


@pytest.mark.parametrize("card", [{}, {"macs": None}, {"macs": 0}, {"macs": "many"}])
def test_without_macs_on_a_card_none_are_told(card):
    made = Made([info_of("cheap", **card), info_of("dear", macs=5)])
    made.classify(SURE)
    assert made.seen[0][1] == Spent({"cheap": 1, "dear": 0}, 0.0, 0.0)


def test_three_stages_with_a_threshold_each():
    made = Made(accept_above=(0.9, 0.99), names=("a", "b", "c"))
    answer = made.classify("a=9 b=0 c=0", "a=0 b=9 c=0", "a=0 b=3 c=1", "a=2 b=2 c=2")
    assert answer.stages == ("a", "b", "c", "c")
    assert answer.logits[:, 0].tolist() == [9, 9, 1, 2]


@pytest.mark.parametrize(("accept_above", "stage"), [(0.0, "cheap"), (1.0, "dear")])
def test_the_ends_of_the_scale(accept_above, stage):
    assert Made(accept_above=(accept_above,)).classify("cheap=0.1 dear=0.1").stages == (stage,)


def test_labels_in_another_order_are_put_in_the_last_stages():
    made = Made([info_of("cheap", labels=("yes", "no")), info_of("dear")])
    answer = made.classify(SURE, UNSURE)
    assert made.cascade.info.labels == ("no", "yes")
    assert answer.logits.tolist() == [[0, 5], [-3, 0]]


@pytest.mark.parametrize(
    ("infos", "reason"),
    [
        ([info_of("cheap"), None], "no answer from dear"),
        ([None, None], "no answer from cheap, dear"),
        ([info_of("cheap", labels=("a", "b")), info_of("dear")], "different labels"),
        (
            [info_of("cheap", labels=("a", "a", "b")), info_of("dear", labels=("a", "b", "a"))],
            "equal names in another order",
        ),
        ([info_of("cheap", task="image"), info_of("dear")], "classifies images"),
        ([info_of("cheap", problem_type="regression"), info_of("dear")], "is regression"),
        ([info_of(name, problem_type="regression") for name in ("cheap", "dear")], "is regression"),
    ],
)
def test_stages_that_do_not_fit_say_why(infos, reason):
    made = Made(infos)
    assert not made.cascade.ready
    with pytest.raises(NotReady, match=reason):
        made.classify(SURE)
    made.cascade.set_stages([info_of("cheap"), info_of("dear")])
    assert made.cascade.ready


def test_the_joint_info():
    info = Made([info_of("cheap", macs=1), info_of("dear", macs=2)]).cascade.info
    assert (info.name, info.kind, info.architecture, info.dtype) == (
        "both",
        "cascade",
        "cheap > dear",
        "fp32",
    )
    assert info.card == {"stages": ["cheap", "dear"], "accept_above": [0.9]}


def test_a_stage_that_refuses_refuses_the_request():
    made = Made()
    made.stages.answers["dear"] = Overloaded("busy", 2.0)
    with pytest.raises(Overloaded):
        made.classify(SURE, UNSURE)
    assert made.seen == []


def test_the_deadline_is_for_all_stages_together():
    made = Made()
    made.classify(UNSURE, timeout_s=5)
    assert 4 < made.stages.asked[1][3] <= 5
    with pytest.raises(DeadlineExceeded):
        made.classify(UNSURE, timeout_s=0)


@pytest.mark.parametrize(
    ("problem_type", "scores", "expected"),
    [
        ("single_label_classification", [[0.7, 0.2, 0.1]], 0.7),
        ("multi_label_classification", [[0.9, 0.1, 0.6]], 0.6),
        ("multi_label_classification", [[0.9, 0.1, 0.02]], 0.9),
        ("single_label_classification", [[0.3]], 0.7),
    ],
)
def test_confidence(problem_type, scores, expected):
    assert confidence(np.array(scores, np.float32), problem_type) == pytest.approx([expected])
