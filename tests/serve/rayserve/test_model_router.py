"""What the gateway knows and does, over hosts that are plain objects."""

import asyncio

import numpy as np
import pytest
from prometheus_client.parser import text_string_to_metric_families

from fewshard_core.values import ModelInfo, TextInput
from fewshard_serve.core import BatchStats, Classified, PredictionRequest, Timings
from fewshard_serve.errors import InternalError, NotFound, NotReady, TooLarge, UnknownModel, UnusableItem
from fewshard_serve.http.service import ModelEntry
from fewshard_serve.metrics import Metrics
from fewshard_serve.protocol.stats import ModelStatistics
from fewshard_serve.rayserve.deployment_plan import HostSpec, ModelSpec
from fewshard_serve.rayserve.discovery import Target
from fewshard_serve.rayserve.model_router import STARTING_REFRESH_S, STEADY_REFRESH_S, ModelRouter

ANSWER = Classified(np.zeros((1, 2), np.float32), 1, Timings(0, 0, 0))


class Hosts:
    """Answers by application: a list of replicas' answers, or exceptions to raise one after another."""

    def __init__(self, **answers):
        self.answers = answers
        self.asked = []
        self.raises = RuntimeError

    async def all(self, app, method, *args, timeout_s):
        self.asked.append((app, method))
        return self.answers.get(f"{app}_{method}", [])

    async def each(self, app, method, *args, timeout_s):
        return await self.all(app, method, *args, timeout_s=timeout_s)

    async def one(self, app, method, *args):
        self.asked.append((app, method, *args))
        answer = self.answers[f"{app}_{method}"].pop(0)
        if isinstance(answer, RuntimeError | self.raises):
            raise answer
        return answer


def directory(hosts, why_waiting=lambda host: "", find_targets=None):
    def spec(app, *names):
        models = tuple(ModelSpec(name, "x", "cpu", "fp32", None) for name in names)
        return HostSpec(app, "/v2/models", models)

    specs = [spec("shared", "a", "b"), spec("own", "c")]
    labels = {"application": "gateway", "replica": "g"}
    return ModelRouter(specs, hosts, Metrics(), labels, why_waiting, find_targets)


def ready(name):
    return ModelEntry(name, "READY")


def states(of):
    return {entry.name: entry.state for entry in asyncio.run(of.model_index())}


def classify(of, model):
    return asyncio.run(of.classify(model, PredictionRequest([TextInput("1")])))


def test_every_configured_model_is_listed_before_anyone_answers():
    of = directory(Hosts())
    asyncio.run(of.refresh())
    assert states(of) == {"a": "LOADING", "b": "LOADING", "c": "LOADING"}
    assert of.is_loading
    assert asyncio.run(of.ready()) is False


def test_ready_once_every_model_is():
    hosts = Hosts(shared_model_states=[[ready("a"), ready("b")]])
    of = directory(hosts)
    asyncio.run(of.refresh())
    assert states(of) == {"a": "READY", "b": "READY", "c": "LOADING"}
    assert asyncio.run(of.ready()) is False
    hosts.answers["own_model_states"] = [[ready("c")]]
    asyncio.run(of.refresh())
    assert asyncio.run(of.ready()) is True
    assert not of.is_loading


def test_a_model_is_as_ready_as_its_readiest_replica():
    failed = ModelEntry("c", "UNAVAILABLE", reason="no memory")
    hosts = Hosts(own_model_states=[[failed], [ready("c")]])
    of = directory(hosts)
    asyncio.run(of.refresh())
    assert states(of)["c"] == "READY"
    hosts.answers["own_model_states"] = [[failed], [failed]]
    asyncio.run(of.refresh())
    index = {entry.name: entry for entry in asyncio.run(of.model_index())}
    assert (index["c"].state, index["c"].reason) == ("UNAVAILABLE", "no memory")


def test_a_host_that_falls_silent_is_unavailable_and_comes_back():
    hosts = Hosts(own_model_states=[[ready("c")]])
    of = directory(hosts)
    asyncio.run(of.refresh())
    hosts.answers["own_model_states"] = []
    asyncio.run(of.refresh())
    assert states(of)["c"] == "UNAVAILABLE"
    hosts.answers["own_model_states"] = [[ready("c")]]
    asyncio.run(of.refresh())
    assert states(of)["c"] == "READY"


def test_the_index_is_answered_from_memory():
    hosts = Hosts()
    of = directory(hosts)
    states(of)
    asyncio.run(of.ready())
    assert hosts.asked == []


def test_classify_goes_to_the_models_own_host():
    hosts = Hosts(own_classify_for_gateway=[ANSWER], shared_classify_for_gateway=[ANSWER])
    of = directory(hosts)
    assert classify(of, "c") is ANSWER
    assert classify(of, "b") is ANSWER
    assert [(call[0], call[2]) for call in hosts.asked] == [("own", "c"), ("shared", "b")]


def test_an_error_that_was_returned_is_raised_and_not_tried_again():
    hosts = Hosts(own_classify_for_gateway=[UnusableItem(3, "no"), ANSWER])
    with pytest.raises(UnusableItem):
        classify(directory(hosts), "c")
    assert len(hosts.asked) == 1


def test_a_replica_that_dies_costs_latency_not_the_answer():
    hosts = Hosts(own_classify_for_gateway=[RuntimeError("actor died"), ANSWER])
    assert classify(directory(hosts), "c") is ANSWER


@pytest.mark.parametrize("kind", [TooLarge, InternalError])
def test_a_replica_that_was_there_is_not_said_to_be_missing(kind):
    hosts = Hosts(own_classify_for_gateway=[kind("the reason"), ANSWER])
    hosts.raises = kind
    with pytest.raises(kind, match="the reason"):
        classify(directory(hosts), "c")
    assert len(hosts.asked) == 1, "it would fail on another replica too"


def test_statistics_are_those_of_all_replicas():
    parts = [ModelStatistics(), ModelStatistics()]
    for part in parts:
        part.add_batch(BatchStats("c", 3, 9, 0, 0.1, (0.0,) * 3))
    info = ModelInfo("c", "text", "dense", ("a", "b"), "single_label_classification", "x", "fp32", "cpu", 8)
    hosts = Hosts(own_model_states=[[ModelEntry("c", "READY", info=info)]], own_stats_part=parts)
    of = directory(hosts)
    with pytest.raises(NotReady, match="loading"):
        asyncio.run(of.merged_stats("c"))
    asyncio.run(of.refresh())
    answer = asyncio.run(of.merged_stats("c"))
    assert (answer["replicas"], answer["model_stats"][0]["inference_count"]) == (2, 6)
    hosts.answers["own_stats_part"] = []
    with pytest.raises(NotReady, match="no replica of c"):
        asyncio.run(of.merged_stats("c"))


def test_no_replica_at_all_is_not_ready():
    hosts = Hosts(own_classify_for_gateway=[RuntimeError("dead"), RuntimeError("dead"), ANSWER])
    with pytest.raises(NotReady, match="no replica of c"):
        classify(directory(hosts), "c")


def test_a_replica_that_cannot_is_not_the_last_word():
    hosts = Hosts(own_classify_for_gateway=[NotReady("it hangs"), ANSWER])
    assert classify(directory(hosts), "c") is ANSWER
    hosts = Hosts(own_classify_for_gateway=[NotReady("it hangs"), NotReady("so does this"), ANSWER])
    with pytest.raises(NotReady, match="so does this"):
        classify(directory(hosts), "c")


def test_unknown_models_and_draining():
    of = directory(Hosts(own_classify_for_gateway=[ANSWER]))
    with pytest.raises(UnknownModel, match="a, b, c"):
        classify(of, "nobody")
    of.begin_drain()
    with pytest.raises(NotReady, match="draining"):
        classify(of, "c")
    assert asyncio.run(of.ready()) is False


def test_metrics_are_the_union_of_all_replicas_and_the_gateways_own():
    def replica(name):
        metrics = Metrics()
        metrics.observe_request("c", "classify", "ok", 0.01)
        return name, metrics.render({"application": "own", "replica": name})

    of = directory(Hosts(own_metrics_part=[replica("r1"), replica("r2")]))
    of._metrics.observe_request("c", "classify", "ok", 0.01)
    text = asyncio.run(of.metrics(False)).decode()
    counted = [line for line in text.splitlines() if line.startswith("fewshard_requests_total{")]
    assert len(counted) == 3
    assert {name for name in ("r1", "r2", "g") if any(f'replica="{name}"' in line for line in counted)} == {
        "r1",
        "r2",
        "g",
    }
    assert text.count("# TYPE fewshard_requests_total") == 1


def scraped(of):
    """Up or not by application and replica, and the replicas that are wanted, of one scrape."""
    families = {f.name: f for f in text_string_to_metric_families(asyncio.run(of.metrics(False)).decode())}
    up = families["fewshard_replica_up"].samples if "fewshard_replica_up" in families else []
    is_up = {(one.labels["application"], one.labels["replica"]): one.value for one in up}
    return is_up, {s.labels["application"]: s.value for s in families["fewshard_replicas_wanted"].samples}


def test_a_scrape_names_the_replicas_that_hang():
    hosts = Hosts()
    of = directory(hosts)
    assert scraped(of) == ({}, {"shared": 1, "own": 1})
    hosts.answers["own_metrics_part"] = [("r1", b""), ("r2", b"")]
    hosts.answers["shared_metrics_part"] = [TimeoutError()]
    assert scraped(of)[0] == {("shared", "unknown"): 0, ("own", "r1"): 1, ("own", "r2"): 1}
    hosts.answers["own_metrics_part"] = [("r1", b""), TimeoutError()]
    assert scraped(of)[0] == {("shared", "unknown"): 0, ("own", "r1"): 1, ("own", "r2"): 0}
    hosts.answers["own_metrics_part"] = [("r1", b""), ("r3", b"")]
    assert scraped(of)[0] == {("shared", "unknown"): 0, ("own", "r1"): 1, ("own", "r3"): 1}


def test_targets_are_listed_as_prometheus_discovers_them():
    async def find():
        return [Target("10.0.0.7:30001", "/v2/models/c/metrics")]

    of = directory(Hosts(), find_targets=find)
    labels = {"__metrics_path__": "/v2/models/c/metrics"}
    assert asyncio.run(of.metrics_targets()) == [{"targets": ["10.0.0.7:30001"], "labels": labels}]
    with pytest.raises(NotFound, match="scrape /metrics"):
        asyncio.run(directory(Hosts()).metrics_targets())


def test_keep_fresh_asks_often_while_models_load_and_follows_what_changes():
    """The clock is a list: how long it would have slept, and the state of `c` at that moment."""
    hosts = Hosts(shared_model_states=[[ready("a"), ready("b")]])
    of, slept = directory(hosts), []
    changes = {2: [[ready("c")]], 4: []}

    async def sleep(seconds):
        slept.append((seconds, {entry.name: entry.state for entry in await of.model_index()}["c"]))
        if len(slept) in changes:
            hosts.answers["own_model_states"] = changes[len(slept)]
        if len(slept) == 6:
            raise asyncio.CancelledError

    with pytest.raises(asyncio.CancelledError):
        asyncio.run(of.keep_fresh(sleep))
    often, seldom = STARTING_REFRESH_S, STEADY_REFRESH_S
    assert slept == [(often, "LOADING")] * 2 + [(seldom, "READY")] * 2 + [(seldom, "UNAVAILABLE")] * 2
    assert hosts.asked == [("shared", "model_states"), ("own", "model_states")] * 6, "each host once a round"
    assert often < seldom


def test_keep_fresh_ends_when_it_is_cancelled():
    async def work():
        hosts = Hosts()
        task = asyncio.create_task(directory(hosts).keep_fresh(lambda _: asyncio.sleep(0)))
        while len(hosts.asked) < 6:
            await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(asyncio.wait_for(work(), 30))


def test_a_host_that_is_waited_for_says_why_until_it_answers():
    waiting = {"shared": "", "own": "waiting: it needs 4 GPUs, and the cluster has 1"}
    hosts = Hosts()
    of = directory(hosts, lambda host: waiting[host.app])
    asyncio.run(of.refresh())
    reasons = {entry.name: (entry.state, entry.reason) for entry in asyncio.run(of.model_index())}
    assert reasons["a"] == ("LOADING", "loading")
    assert reasons["c"] == ("LOADING", waiting["own"])
    assert not asyncio.run(of.ready())
    waiting["own"] = ""
    asyncio.run(of.refresh())
    assert {entry.reason for entry in asyncio.run(of.model_index())} == {"loading"}


def shown(of, *names, unloaded=()):
    models = tuple(ModelSpec(name, "x", "cpu", "fp32", None) for name in names)
    asyncio.run(of.show([HostSpec("shared", "/v2/models", models)], unloaded))


def test_models_that_come_are_known_at_once_and_those_that_go_are_gone():
    hosts = Hosts(shared_model_states=[[ready("a"), ready("b")]], own_model_states=[[ready("c")]])
    of = directory(hosts)
    asyncio.run(of.refresh())
    hosts.answers["shared_model_states"] = [[ready("a"), ready("new")]]
    shown(of, "a", "new", unloaded=["c"])
    assert states(of) == {"a": "READY", "new": "READY", "c": "UNAVAILABLE"}
    assert asyncio.run(of.ready()) is True, "what is unloaded on purpose is not missed"
    with pytest.raises(UnknownModel, match="there are: a, new"):
        classify(of, "c")
    shown(of, "a", "new", "c")
    assert states(of)["c"] == "LOADING"


def test_a_model_that_is_added_and_still_loads_does_not_make_the_server_unready():
    hosts = Hosts(shared_model_states=[[ready("a"), ready("b")]], own_model_states=[[ready("c")]])
    of = directory(hosts)
    asyncio.run(of.refresh())
    shown(of, "a", "late")
    assert states(of) == {"a": "READY", "late": "LOADING"}
    assert asyncio.run(of.ready()) is True
