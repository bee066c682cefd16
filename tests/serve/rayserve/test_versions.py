"""Versions of a model: the configuration, which version answers, and a replica that holds several."""

import asyncio
from collections import Counter
from itertools import pairwise

import httpx
import pytest
from pydantic import ValidationError

from fewshard_core.values import TextInput
from fewshard_serve.config import FewshardConfig
from fewshard_serve.core import PredictionRequest
from fewshard_serve.errors import NotFound
from fewshard_serve.http.host import HostApp
from fewshard_serve.http.service import find_ready, why_not
from fewshard_serve.http.versions import choice
from fewshard_serve.rayserve.broadcast import MergedService
from fewshard_serve.rayserve.deployment_plan import plan_hosts
from fewshard_serve.rayserve.replica import Replica

VERSIONS = {"v1": "dense", "v2": "contrary"}
"""Text "7" has the label "no" of v1, and "yes" of v2."""


def config(**model):
    return FewshardConfig.model_validate({"models": [{"name": "m", **model}, {"name": "other", "path": "x"}]})


def specs(**model):
    (host,) = plan_hosts(config(**model))
    return [(each.key, each.path, each.weight) for each in host.models if each.name == "m"]


def test_each_version_is_loaded_and_the_last_one_answers():
    assert specs(versions=VERSIONS) == [("m@v1", "dense", 0.0), ("m@v2", "contrary", 1.0)]
    assert specs(versions={1: "a", 2: "b"}) == [("m@1", "a", 0.0), ("m@2", "b", 1.0)]


def test_path_names_the_version_that_answers_and_a_split_several():
    assert specs(versions=VERSIONS, path="dense") == [("m@v1", "dense", 1.0), ("m@v2", "contrary", 0.0)]
    split = specs(versions=VERSIONS, split={"v1": 90, "v2": 10})
    assert split == [("m@v1", "dense", 90.0), ("m@v2", "contrary", 10.0)]


def test_a_canary_begins_with_the_other_version():
    assert specs(versions=VERSIONS, canary={"to": "v2"}) == [
        ("m@v1", "dense", 1.0),
        ("m@v2", "contrary", 0.0),
    ]
    assert specs(versions={1: "a", 2: "b"}, canary={"to": 1}) == [("m@1", "a", 0.0), ("m@2", "b", 1.0)]


def test_a_model_without_versions_is_as_it_was():
    assert specs(path="dense") == [("m", "dense", 0.0)]


@pytest.mark.parametrize(
    ("model", "why"),
    [
        ({"versions": VERSIONS, "path": "other"}, "path must be that of a version"),
        ({"path": "x", "split": {"v1": 1}}, "split has 'v1', which is no version; there are: none"),
        ({"versions": VERSIONS, "split": {"v3": 1}}, "which is no version; there are: v1, v2"),
        ({"versions": VERSIONS, "split": {"v1": 0}}, "every weight of split is 0"),
        ({"versions": VERSIONS, "split": {"v1": -1}}, "greater than or equal to 0"),
        ({"versions": VERSIONS, "experts": {"shards": 2}}, "has one version; leave versions out"),
        ({"versions": {"a/b": "x"}}, "should match pattern"),
        ({"versions": VERSIONS, "canary": {"to": "v3"}}, "canary.to is 'v3', which is no version"),
        ({"versions": VERSIONS, "canary": {"to": "v2"}, "split": {"v1": 1}}, "leave out split, or canary"),
        (
            {"versions": VERSIONS, "canary": {"to": "v1"}, "path": "dense"},
            "is the version that answers already",
        ),
        ({"versions": {"v1": "dense"}, "canary": {"to": "v1"}}, "is the version that answers already"),
        ({"versions": VERSIONS, "canary": {"to": "v2"}, "replicas": {"min": 2}}, "set replicas.max to 1"),
        ({"versions": VERSIONS, "canary": {"to": "v2", "judge": {"risk": 0}}}, "greater than 0"),
        ({"path": "x", "canary": {"to": "v2"}}, "which is no version; there are: none"),
        ({"versions": {"v1": "ftp:x"}}, "is none of zoo:"),
        ({"versions": {}}, "path"),
    ],
)
def test_what_does_not_fit_is_refused(model, why):
    with pytest.raises(ValidationError, match=why):
        config(**model)


def test_weights_are_kept_by_keys_and_by_chance():
    weights = {"v1": 90.0, "v2": 10.0}
    assert [choice(weights, point) for point in (0.0, 0.89, 0.91, 0.999_999)] == ["v1", "v1", "v2", "v2"]


def test_whoever_a_growing_version_answers_it_goes_on_to_answer():
    points = [number / 1000 for number in range(1000)]
    steps = [
        {point for point in points if choice({"v1": 100 - part, "v2": part}, point) == "v2"}
        for part in (1, 10, 50, 100)
    ]
    assert all(small < large for small, large in pairwise(steps))
    assert [len(step) for step in steps] == [10, 100, 500, 1000]


@pytest.fixture
def on_replica(fake_models):
    """Run an async function of a `Replica` of the model `m`, and of a client of its HTTP application."""

    def run(work, **model):
        async def opened():
            (host,) = plan_hosts(config(**model), "fake_models:load_model")
            replica = await Replica.open(host)

            async def ask_peers(method, name):
                return [replica.statistics(name)] if method == "stats_part" else []

            app = HostApp(MergedService(replica, {}, ask_peers))
            try:
                transport = httpx.ASGITransport(app)
                async with httpx.AsyncClient(transport=transport, base_url="http://m/v2/models/m") as client:
                    return await asyncio.wait_for(work(replica, client), 60)
            finally:
                assert await replica.finish_drain(5.0)

        return asyncio.run(opened())

    return run


SEVEN = {"inputs": "7"}


def test_a_version_answers_under_its_own_path(on_replica):
    async def work(_, client):
        for version, label in (("v1", "no"), ("v2", "yes")):
            path = f"/versions/{version}"
            answer = (await client.post(f"{path}/classify", json=SEVEN)).json()
            assert (answer["model"], answer["predictions"][0][0]["label"]) == ("m", label)
            tensor = {"name": "text", "datatype": "BYTES", "shape": [1], "data": ["7"]}
            answer = (await client.post(f"{path}/infer", json={"inputs": [tensor]})).json()
            assert (answer["model_name"], answer["model_version"]) == ("m", version)
            assert (await client.get(f"{path}/ready")).json() == {"name": "m", "ready": True}
            assert (await client.get(path)).json()["versions"] == [version]
            assert (await client.get(f"{path}/config")).json()["version"] == version
            (stats,) = (await client.get(f"{path}/stats")).json()["model_stats"]
            assert (stats["name"], stats["version"], stats["inference_count"]) == ("m", version, 2)
        missing = await client.post("/versions/v3/classify", json=SEVEN)
        assert (missing.status_code, missing.json()["code"]) == (404, "not_found")
        assert "m has no version 'v3'; it has 'v1', 'v2'" in missing.json()["error"]

    on_replica(work, versions=VERSIONS)


def test_the_model_itself_has_all_versions_and_the_last_one_answers(on_replica):
    async def work(replica, client):
        assert (await client.post("/classify", json=SEVEN)).json()["predictions"][0][0]["label"] == "yes"
        assert (await client.get("")).json()["versions"] == ["v1", "v2"]
        stats = (await client.get("/stats")).json()["model_stats"]
        assert [(each["version"], each["inference_count"]) for each in stats] == [("v1", 0), ("v2", 1)]
        entry = replica.entries()[0]
        lines = [(line.name, line.version, line.state) for line in entry.lines]
        assert lines == [("m", "v1", "READY"), ("m", "v2", "READY")]
        assert find_ready([entry], "m").version == "v2"
        assert find_ready([entry], "m", "v1").version == "v1"
        with pytest.raises(NotFound, match="'v9'; it has 'v1', 'v2'"):
            find_ready([entry], "m", "v9")
        assert "there are: m" in str(why_not("no", [entry]))
        text = replica.metrics.render().decode()
        assert 'fewshard_items_total{model="m@v2"} 1' in text

    on_replica(work, versions=VERSIONS)


def test_a_split_keeps_each_key_with_its_version(on_replica):
    async def work(replica, client):
        seen = {}
        for number in range(200):
            headers = {"X-Split-Key": f"user {number}"}
            first, second = [await client.post("/classify", json=SEVEN, headers=headers) for _ in range(2)]
            seen[number] = first.json()["predictions"][0][0]["label"]
            assert second.json()["predictions"][0][0]["label"] == seen[number]
            by_gateway = await replica.classify(
                "m", PredictionRequest([TextInput("7")], split_key=f"user {number}")
            )
            assert by_gateway.version == {"no": "v1", "yes": "v2"}[seen[number]]
        counted = Counter(seen.values())
        assert 120 < counted["no"] < 180, "three of four"
        asked = PredictionRequest([TextInput("7")])
        by_chance = Counter([(await replica.classify("m", asked)).version for _ in range(200)])
        assert 120 < by_chance["v1"] < 180

    on_replica(work, versions=VERSIONS, split={"v1": 75, "v2": 25})


@pytest.mark.parametrize(("split", "is_served"), [({"v1": 1, "v2": 1}, False), ({}, True)])
def test_versions_with_different_labels_share_no_requests(on_replica, split, is_served):
    async def work(replica, client):
        answer = await client.post("/classify", json=SEVEN)
        assert answer.status_code == (200 if is_served else 503)
        if not is_served:
            assert "'v1' and 'v2' have different labels" in answer.json()["error"]
            assert "different labels" in replica.entries()[0].reason

    on_replica(work, versions={"v1": "dense", "v2": "animals"}, split=split)
