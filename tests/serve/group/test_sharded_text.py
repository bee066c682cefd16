"""A sharded model behind the engine's interface: golden inputs, counts, placements, degraded answers."""

import asyncio
import json
import threading

import numpy as np
import pytest

from fewshard_core.values import TextInput
from fewshard_models.checkpoint import ZOO
from fewshard_serve.backends.load import load_model
from fewshard_serve.backends.sharded_text import load_sharded_model
from fewshard_serve.core import PredictionRequest
from fewshard_serve.engine import Engine
from fewshard_serve.engine.settings import EngineSettings
from fewshard_serve.errors import MalformedRequest, NotFound, NotReady
from fewshard_serve.group.membership import Membership
from fewshard_serve.group.settings import ExpertsSettings
from fewshard_serve.protocol.classify import ClassifyOptions, ClassifyResponse, encode_classify
from fewshard_serve.rayserve.deployment_plan import HostSpec, ModelSpec
from fewshard_serve.rayserve.replica import Replica

TEXTS = [
    "a gripping and often funny film",
    "dull",
    "two hours i want back",
    "warm , bright and a bit too long",
]
INPUTS = [TextInput(text) for text in TEXTS]


@pytest.fixture
def load(kit):
    opened = []

    def make(path="zoo:sst2-moe", dtype="fp32", launcher=None, **experts):
        launcher = launcher or kit.ThreadLauncher()
        settings = ExpertsSettings(**{"shards": 2, "exchange_timeout_ms": 2000.0, **experts})
        model = load_sharded_model("m", str(path), "cpu", dtype, settings, launcher)
        model.launcher = launcher
        opened.append(model)
        return model

    yield make
    for model in opened:
        model.close()


def test_it_answers_and_describes_itself_as_the_whole_model(load):
    whole, sharded = load_model("m", "zoo:sst2-moe", "cpu", "fp32"), load()
    assert sharded.info == whole.info
    assert sharded.estimate_tokens(INPUTS) == whole.estimate_tokens(INPUTS)
    items = sharded.prepare(INPUTS)
    assert items == whole.prepare(INPUTS)
    assert np.abs(sharded.run(items).logits - whole.run(items).logits).max() < 1e-4


def test_bf16_stays_within_its_tolerance(load):
    whole, sharded = load_model("m", "zoo:sst2-moe", "cpu", "bf16"), load(dtype="bf16")
    items = sharded.prepare(INPUTS)
    assert np.abs(sharded.run(items).logits - whole.run(items).logits).max() < 6e-2


def test_counts_are_those_of_the_whole_model_and_leave_the_golden_inputs_out(load):
    whole, sharded = load_model("m", "zoo:sst2-moe", "cpu", "fp32"), load()
    zero = sharded.expert_counts()
    assert zero.tokens.sum() == zero.shard_tokens.sum() == 0
    assert zero.shard_tokens.shape == (3, 2)
    for _ in range(2):
        sharded.run(sharded.prepare(INPUTS))
        whole.run(whole.prepare(INPUTS))
    ours, theirs = sharded.expert_counts(), whole.expert_counts()
    assert np.array_equal(ours.tokens, theirs.tokens)
    assert np.array_equal(ours.rows, theirs.rows)
    assert np.allclose(ours.probability, theirs.probability, atol=1e-3)
    assert np.allclose(ours.entropy, theirs.entropy, atol=1e-3)
    assert np.array_equal(ours.shard_tokens.sum(axis=1), theirs.tokens.sum(axis=1))


def test_a_placement_is_planned_and_applied(load):
    model = load(placement="contiguous")
    assert model.group().placement == (((0, 1), (2, 3)),) * 3
    planned = model.place({"placement": "round_robin"})
    assert (planned["moves"], planned["applied"]) == (6, False)
    assert planned["bytes"] == 6 * 4 * (2 * 208 * 384 + 208 + 384)
    assert model.group().placement == (((0, 1), (2, 3)),) * 3
    assert model.place({"placement": "round_robin", "apply": True}) == {**planned, "applied": True}
    assert model.group().placement == (((0, 2), (1, 3)),) * 3
    with pytest.raises(MalformedRequest):
        model.place({"placement": "best"})


def test_a_placement_asked_for_at_once_is_the_one_that_runs(load, monkeypatch):
    activated = Membership.activated

    def activated_late(self, generation):
        threading.Timer(0.3, activated, (self, generation)).start()

    monkeypatch.setattr(Membership, "activated", activated_late)
    model = load(placement="contiguous")
    assert model.place({"placement": "round_robin", "apply": True})["applied"]
    assert (model.group().generation, model.group().num_moves) == (2, 6)
    assert model.group().placement == (((0, 2), (1, 3)),) * 3


def test_a_model_of_one_process_has_no_placement():
    model = load_model("m", "zoo:sst2-moe", "cpu", "fp32")

    async def place():
        spec = ModelSpec("m", "", "cpu", "fp32", EngineSettings())
        replica = Replica(HostSpec("models", "/v2/models", (spec,)), [model], None)
        try:
            assert replica.hosted["m"].group() is None
            assert replica.hosted["m"].ready
            await replica.place("m", {"placement": "round_robin"})
        finally:
            await replica.finish_drain(5)

    with pytest.raises(NotFound, match=r"not sharded; give it experts\.shards"):
        asyncio.run(place())


@pytest.mark.parametrize(
    ("path", "experts", "message"),
    [
        ("zoo:sst2-dense", {}, "dense model and has no experts to shard"),
        ("zoo:cifar10-dense", {}, "fewshard_text, .* can be sharded"),
        ("zoo:nothing", {}, "the bundled zoo has no 'nothing'"),
        ("zoo:sst2-moe", {"slots_per_shard": 1}, "2 slots are missing"),
        ("zoo:sst2-moe", {"shards": 5, "placement": "contiguous"}, "at most 4 shards"),
        ("zoo:sst2-moe", {"placement": "/gone/plan.json"}, "no readable placement file"),
    ],
)
def test_what_cannot_be_sharded_says_why(load, path, experts, message):
    with pytest.raises(NotReady, match=message):
        load(path, **experts)


def test_golden_inputs_are_run_before_it_takes_traffic(load, tmp_path):
    for file in (ZOO / "sst2-moe").iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    card = json.loads((tmp_path / "card.json").read_text())
    card["golden"][3]["logits"][0] += 0.5
    (tmp_path / "card.json").write_text(json.dumps(card))
    with pytest.raises(NotReady, match=r"golden inputs wrongly: a logit is off by 0\.5"):
        load(tmp_path)


def test_degraded_answers_say_so_to_the_caller(load, kit):
    model = load(slots_per_shard=2, max_slots_per_shard=2, degraded=True)
    assert "degraded" not in classified(model)
    model.launcher.end(1)
    kit.wait_until(lambda: model.group().is_degraded)
    assert classified(model)["degraded"] is True
    assert (model.group().size, model.problem()) == (1, "")


def test_without_permission_there_is_no_answer_but_a_reason(load, kit):
    model = load(slots_per_shard=2, max_slots_per_shard=2)
    model.launcher.end(1)
    kit.wait_until(model.problem)
    assert "shard 1 lost" in model.problem()
    with pytest.raises(NotReady, match="waiting for a replacement"):
        classified(model)
    model.launcher.start_again(1)
    kit.wait_until(lambda: not model.problem())
    assert "degraded" not in classified(model)


def classified(model):
    """The JSON answer to `TEXTS`, by the engine."""

    async def ask():
        engine = Engine([model], {"m": EngineSettings()}, lambda stats: None)
        try:
            return await engine.classify("m", PredictionRequest(INPUTS))
        finally:
            await engine.drain(5)

    body = encode_classify(ClassifyOptions(), model.info, asyncio.run(ask()))
    ClassifyResponse.model_validate_json(body)
    return json.loads(body)
