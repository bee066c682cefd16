"""A canary in a replica: requests go to both versions, and the new one takes over or is given up."""

import asyncio
import json
import logging
import random

import httpx
import pytest

from fewshard_serve.config import FewshardConfig
from fewshard_serve.http.host import HostApp
from fewshard_serve.rayserve.broadcast import MergedService
from fewshard_serve.rayserve.deployment_plan import plan_hosts
from fewshard_serve.rayserve.replica import Replica


@pytest.fixture
def on_canary(fake_models):
    """Run an async function of a `Replica` whose model `m` has a canary, and of a client of it."""

    def run(work, new, old="dense", judge=None, **canary):
        model = {"name": "m", "versions": {"old": old, "new": new}}
        model["canary"] = {"to": "new", "judge": judge or {}, **canary}
        (host,) = plan_hosts(FewshardConfig.model_validate({"models": [model]}), "fake_models:load_model")

        async def opened():
            replica = await Replica.open(host)
            app = HostApp(MergedService(replica, {}, None))
            try:
                transport = httpx.ASGITransport(app)
                async with httpx.AsyncClient(transport=transport, base_url="http://m/v2/models/m") as client:
                    return await asyncio.wait_for(work(replica, client), 300)
            finally:
                assert await replica.finish_drain(5.0)

        return asyncio.run(opened())

    return run


def counted(replica, name):
    """The last label of each sample of a metric, and the value."""
    lines = [line for line in replica.metrics.render().decode().splitlines() if line.startswith(f"{name}{{")]
    return {line.partition("{")[2].partition("}")[0]: float(line.rpartition(" ")[2]) for line in lines}


def steps(replica):
    samples = counted(replica, "fewshard_canary_steps_total")
    return {key.split('step="')[1].partition('"')[0] for key in samples}


def answering(replica):
    """The versions that answer requests without a version."""
    return replica.models["m"].answering


def weight(replica):
    (value,) = counted(replica, "fewshard_canary_weight_ratio").values()
    return value


async def ask(client, number):
    answer = await client.post("/classify", json={"inputs": str(number)})
    assert answer.status_code == 200, answer.text
    return answer.json()["predictions"][0][0]["label"]


async def ask_until(condition, client, numbers):
    """The number of requests until the condition holds; each of them is answered."""
    for count, number in enumerate(numbers, 1):
        await ask(client, number)
        if condition():
            return count
    raise AssertionError("not within these requests")


def numbers(num):
    generator = random.Random(7)
    return [generator.randrange(1, 10_000) for _ in range(num)]


def truth(tmp_path):
    """Numbers that end in 07 are wrong of `dense`; `worse` has these right, and two of 100 others wrong."""
    right = {number: "yes" if number % 100 == 7 else "no" for number in range(1, 10_000)}
    rows = ({"text": str(number), "label": label} for number, label in right.items())
    path = tmp_path / "labels.jsonl"
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    return str(path)


@pytest.mark.slow
def test_a_loss_of_one_point_is_rolled_back_and_every_request_is_answered(on_canary, tmp_path, caplog):
    caplog.set_level(logging.INFO, "fewshard_serve")

    async def work(replica, client):
        needed = await ask_until(lambda: answering(replica) == ["old"], client, numbers(20_000))
        print(f"rolled back after {needed} requests")
        assert steps(replica) == {"started", "rolled_back"} | ({"raised"} if needed > 4000 else set())
        assert weight(replica) == 0.0
        assert [await ask(client, number) for number in (100, 101, 107)] == ["no"] * 3
        new = await client.post("/versions/new/classify", json={"inputs": "100"})
        assert new.json()["predictions"][0][0]["label"] == "yes", "who asks for it still gets it"

    on_canary(work, "worse", judge={"max_flips": 0.1, "labels_from": truth(tmp_path)})
    assert "is given up after" in caplog.text
    assert "it is less accurate, by" in caplog.text


def test_a_version_that_answers_otherwise_is_given_up_soon(on_canary):
    async def work(replica, client):
        needed = await ask_until(lambda: answering(replica) == ["old"], client, numbers(500))
        assert needed < 60
        assert weight(replica) == 0.0
        assert await ask(client, 5) == "no"

    on_canary(work, "contrary")


def test_a_version_as_good_takes_over_by_steps(on_canary, caplog):
    caplog.set_level(logging.INFO, "fewshard_serve")

    async def work(replica, client):
        assert weight(replica) == 0.01
        assert "waits for requests: 0 of 20 compared" in caplog.text
        weights = []

        def is_promoted():
            weights.append(weight(replica))
            return weights[-1] == 1.0

        await ask_until(is_promoted, client, numbers(400))
        assert sorted(set(weights)) == [0.01, 0.05, 0.25, 0.5, 1.0]
        assert weights == sorted(weights)
        assert (await client.get("/config")).json()["version"] == "new"
        assert steps(replica) == {"started", "raised", "promoted"}
        outcomes = counted(replica, "fewshard_canary_requests_total")
        assert outcomes['model="m",outcome="agree",version="new"'] == 80

    on_canary(work, "moe", step_requests=20)


def test_a_version_that_fails_costs_nobody_an_answer(on_canary, tmp_path):
    ill = tmp_path / "ill"
    ill.write_text("crash")

    async def work(replica, client):
        await ask_until(lambda: answering(replica) == ["old"], client, numbers(500))
        assert (
            counted(replica, "fewshard_canary_requests_total")['model="m",outcome="failed",version="new"'] > 1
        )
        assert (await client.get("/ready")).status_code == 200

    on_canary(work, str(ill))


@pytest.mark.parametrize(
    ("text", "why"),
    [
        (None, "labels_from cannot be read"),
        ("", "has no line"),
        ('{"text": "1", "label": "perhaps"}', "labels.jsonl:1: no label 'perhaps'; there are: no, yes"),
        ('{"text": "1"}', "labels.jsonl:1: a line must be"),
        ("1", "labels.jsonl:1: a line must be"),
    ],
)
def test_labels_that_cannot_be_used_are_told_at_the_start(on_canary, tmp_path, text, why):
    path = tmp_path / "labels.jsonl"
    if text is not None:
        path.write_text(text)

    async def work(_, client):
        answer = await client.post("/classify", json={"inputs": "1"})
        assert answer.status_code == 503
        assert why in answer.json()["error"]

    on_canary(work, "worse", judge={"labels_from": str(path)})


def test_a_canary_with_other_labels_is_told_at_the_start(on_canary):
    async def work(_, client):
        answer = await client.post("/classify", json={"inputs": "1"})
        assert answer.status_code == 503
        assert "have different labels" in answer.json()["error"]

    on_canary(work, "animals")
