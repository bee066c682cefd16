"""One replica of a cascade over hosts that are plain objects, and the application plan."""

import asyncio

import httpx
import numpy as np
import pytest

from fewshard_core.values import ModelInfo, TextInput
from fewshard_serve.config import FewshardConfig
from fewshard_serve.core import Caller, Classified, PredictionRequest, Timings
from fewshard_serve.errors import NotReady, Overloaded
from fewshard_serve.http.host import HostApp
from fewshard_serve.http.service import ModelEntry
from fewshard_serve.rayserve.broadcast import MergedService
from fewshard_serve.rayserve.cascade_replica import CascadeReplica
from fewshard_serve.rayserve.deployment_plan import plan_cascades, plan_hosts
from fewshard_serve.rayserve.resource_shares import num_cpus_wanted

CONFIG = FewshardConfig.model_validate(
    {
        "models": [
            {"name": "cheap", "path": "x"},
            {"name": "dear", "path": "x", "replicas": {"min": 2}},
            {"name": "other", "path": "x", "replicas": {"min": 1}},
        ],
        "cascades": [{"name": "auto", "stages": ["cheap", "dear"], "accept_above": 0.9}],
    }
)


def info_of(name, macs):
    return ModelInfo(
        name, "text", "dense", ("no", "yes"), "single_label_classification", "x", "fp32", "cpu", 128,
        card={"macs": macs},
    )  # fmt: skip


class Hosts:
    """A text is its logit; the cheap stage sees a tenth of it. `down` are models that are not ready."""

    def __init__(self):
        self.down, self.asked, self.error = set(), [], None

    async def all(self, app, method, *args, timeout_s):
        self.asked.append((app, method))
        names = {"models": "cheap", "model-dear": "dear"}
        if method != "model_states":
            return [True]
        name = names[app]
        if name in self.down:
            return [[ModelEntry(name, "UNAVAILABLE", reason="damaged")]]
        return [[ModelEntry(name, "READY", info=info_of(name, {"cheap": 1, "dear": 10}[name]))]]

    async def one(self, app, method, model, request):
        inputs = request.inputs
        self.asked.append((app, method, model, len(inputs), request.caller))
        if self.error is not None:
            return self.error
        scale = 0.1 if model == "cheap" else 1.0
        logits = np.array([[scale * float(one.text), 0] for one in inputs], np.float32)
        return Classified(logits, len(inputs), Timings(0, 0, 0))


@pytest.fixture
def hosts():
    return Hosts()


@pytest.fixture
def cascading(hosts):
    (spec,) = plan_cascades(CONFIG, plan_hosts(CONFIG))
    return CascadeReplica(spec, hosts)


def run(work):
    return asyncio.run(work)


def classify(cascading, *texts):
    inputs = [TextInput(text) for text in texts]
    return cascading.classify("auto", PredictionRequest(inputs, caller=Caller("me")))


def test_the_plan_has_an_application_for_each_cascade():
    hosts = plan_hosts(CONFIG)
    (spec,) = plan_cascades(CONFIG, hosts)
    assert (spec.app, spec.route_prefix) == ("cascade-auto", "/v2/models/auto")
    assert [host.app for host in spec.hosts] == ["models", "model-dear"]
    assert (spec.config.stages, spec.config.thresholds) == (("cheap", "dear"), (0.9,))
    assert num_cpus_wanted([*hosts, spec]) == 3  # 0.1 + 0.5 + 2 * 0.5 + 0.5 + 0.1


def test_it_is_ready_once_its_stages_are(cascading, hosts):
    (entry,) = cascading.entries()
    assert entry.state == "LOADING"
    hosts.down.add("dear")
    run(cascading.refresh())
    (entry,) = cascading.entries()
    assert (entry.state, entry.reason) == ("LOADING", "loading")
    hosts.down.clear()
    run(cascading.refresh())
    (entry,) = cascading.entries()
    assert (entry.state, entry.info.kind) == ("READY", "cascade")
    hosts.down.add("cheap")
    run(cascading.refresh())
    (entry,) = cascading.entries()
    assert (entry.state, entry.reason) == ("UNAVAILABLE", "no answer from cheap")


def test_it_asks_the_hosts_of_its_stages(cascading, hosts):
    run(cascading.refresh())
    answer = run(classify(cascading, "50", "3"))
    assert answer.stages == ("cheap", "dear")
    assert answer.logits[:, 0].tolist() == [5, 3]
    asked = [each for each in hosts.asked if each[1] == "classify_for_gateway"]
    assert asked == [
        ("models", "classify_for_gateway", "cheap", 2, Caller("me")),
        ("model-dear", "classify_for_gateway", "dear", 1, Caller("me")),
    ]


def test_metrics_tell_the_share_that_went_on_and_the_cost(cascading):
    run(cascading.refresh())
    for _ in range(3):
        run(classify(cascading, "50", "3"))
    text = cascading.metrics.render().decode()
    assert "fewshard_queue_items" not in text, "it queues nothing"
    for line in (
        'fewshard_cascade_items_total{model="auto",stage="cheap"} 3',
        'fewshard_cascade_items_total{model="auto",stage="dear"} 3',
        'fewshard_cascade_macs_total{model="auto",of="spent"} 36',
        'fewshard_cascade_macs_total{model="auto",of="last_stage_alone"} 60',
        'fewshard_predictions_total{label="no",model="auto"} 6',
    ):
        assert line in text.splitlines()


def test_errors_of_a_stage_are_its_own(cascading, hosts):
    run(cascading.refresh())
    hosts.error = Overloaded("busy", 1.5)
    answer = run(classify(cascading, "1"))
    assert isinstance(answer, Overloaded)
    assert cascading.statistics("auto").requests["fail"].count == 1


def test_draining_outlasts_a_refresh(cascading):
    async def drain():
        await cascading.refresh()
        cascading.begin_drain()
        await cascading.refresh()
        return await classify(cascading, "1"), await cascading.finish_drain(1)

    refused, is_idle = run(drain())
    assert isinstance(refused, NotReady)
    assert is_idle


def test_it_speaks_http_as_a_model_does(cascading):
    app = HostApp(MergedService(cascading, {}, ask_peers=None))

    async def ask():
        await cascading.refresh()
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://x") as client:
            body = {"inputs": ["50", "3"], "top_k": 1}
            return [
                (await client.post("/v2/models/auto/classify", json=body)).json(),
                (await client.get("/v2/models/auto/config")).json(),
                (
                    await client.post(
                        "/v2/models/auto/infer",
                        json={
                            "inputs": [
                                {"name": "text", "datatype": "BYTES", "shape": [2], "data": ["50", "3"]}
                            ]
                        },
                    )
                ).json(),
            ]

    friendly, config, v2 = run(ask())
    assert friendly["stages"] == ["cheap", "dear"]
    assert config["card"] == {"stages": ["cheap", "dear"], "accept_above": [0.9]}
    assert v2["parameters"]["stages"] == "cheap,dear"
