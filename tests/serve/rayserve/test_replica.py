"""One replica of a host without Ray: loading, counting, refusing, draining, and several replicas as one."""

import asyncio
import os
import pickle
import signal
import time
from pathlib import Path

import httpx
import pytest

from fewshard_core.values import TextInput
from fewshard_serve.config import ReplicasConfig
from fewshard_serve.core import Caller, PredictionRequest
from fewshard_serve.engine.batch import PassTimeout
from fewshard_serve.errors import NotFound, NotReady, Overloaded, UnknownModel, UnusableItem
from fewshard_serve.http.host import HostApp
from fewshard_serve.rayserve.actor_process import CountedApp
from fewshard_serve.rayserve.broadcast import MergedService
from fewshard_serve.rayserve.replica import Replica


def texts(*values):
    return [TextInput(value) for value in values]


@pytest.fixture
def on_hosting(host_spec):
    """Run an async function of a `Replica`, and end its threads."""

    def run(work, paths, **more):
        async def opened():
            hosting = await Replica.open(host_spec(paths, **more))
            try:
                return await asyncio.wait_for(work(hosting), 30)
            finally:
                assert await hosting.finish_drain(5.0)

        return asyncio.run(opened())

    return run


def ask(hosting, model, *values, timeout_s=None):
    return hosting.classify(model, PredictionRequest(texts(*values), timeout_s=timeout_s))


def value(hosting, line):
    """The number behind a sample, named as it is printed."""
    found = [one for one in hosting.metrics.render().decode().splitlines() if one.startswith(line + " ")]
    assert len(found) == 1, f"{line} appears {len(found)} times"
    return float(found[0].rpartition(" ")[2])


def test_what_only_probes_counts_as_no_prediction(on_hosting):
    async def work(hosting):
        model = hosting.models["a"]
        for is_probing in (True, False):
            caller = Caller("x", is_probing=is_probing)
            await model.classify(PredictionRequest(texts("3"), caller=caller))
        assert value(hosting, 'fewshard_items_total{model="a"}') == 2
        assert value(hosting, 'fewshard_predictions_total{label="no",model="a"}') == 1

    on_hosting(work, {"a": "dense"})


def test_what_a_cascade_asks_a_stage_is_not_shadowed(on_hosting):
    class Followed(list):
        def follow(self, request, answer):
            self.append(request.inputs[0].text)

        async def close(self):
            pass

    async def work(hosting):
        shadow = hosting.hosted["a"].shadow = Followed()
        for text, is_of_cascade in (("1", False), ("2", True)):
            await hosting.classify("a", PredictionRequest(texts(text), is_of_cascade=is_of_cascade))
        assert shadow == ["1"]

    on_hosting(work, {"a": "dense"})


def test_a_model_that_answers_nobody_is_ready_nowhere_until_it_does(on_hosting, tmp_path, monkeypatch):
    monkeypatch.setattr("fewshard_serve.engine.engine.LOOK_S", 0.05)
    kind = tmp_path / "sick"
    kind.write_text("crash")

    async def work(hosting):
        app = HostApp(MergedService(hosting, {}, ask_peers=None))
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://host") as client:

            async def states():
                ready = (await client.get("/v2/models/a/ready")).status_code
                return hosting.entries()[0].state, ready, value(hosting, 'fewshard_model_ready{model="a"}')

            assert await states() == ("READY", 200, 1)
            assert (await client.post("/v2/models/a/classify", json={"inputs": "1"})).status_code == 500
            while hosting.models["a"].ready:
                await asyncio.sleep(0.01)
            assert await states() == ("UNAVAILABLE", 503, 0)
            refused = await client.post("/v2/models/a/classify", json={"inputs": "1"})
            assert refused.status_code == 503
            assert "it answers nobody: the model failed on this item" in refused.json()["error"]
            kind.unlink()
            while not hosting.models["a"].ready:
                await asyncio.sleep(0.01)
            assert await states() == ("READY", 200, 1)

    on_hosting(work, {"a": str(kind)})


def test_a_model_without_shards_has_no_placement(on_hosting):
    async def work(hosting):
        with pytest.raises(NotFound, match=r"a is not sharded; give it experts\.shards"):
            hosting.models["a"].place({"placement": "round_robin"})
        assert hosting.models["a"].group() is None

    on_hosting(work, {"a": "moe"})


def test_predictions_batches_and_stages_are_counted(on_hosting):
    async def work(hosting):
        classified = await ask(hosting, "a", "3", "-4")
        assert classified.logits.tolist() == [[3, -3], [-4, 4]]
        assert value(hosting, 'fewshard_items_total{model="a"}') == 2
        assert value(hosting, 'fewshard_tokens_total{model="a",state="real"}') == 3
        assert value(hosting, 'fewshard_predictions_total{label="yes",model="a"}') == 1
        assert value(hosting, 'fewshard_stage_seconds_count{model="a",stage="infer"}') == 1
        assert value(hosting, 'fewshard_inflight_items{model="a"}') == 0
        stats = hosting.statistics("a").as_dict("a", "1")
        assert (stats["inference_count"], stats["execution_count"]) == (2, 1)
        assert stats["inference_stats"]["success"]["count"] == 1

    on_hosting(work, {"a": "dense"})


def test_models_that_cannot_be_loaded_leave_the_others_alone(on_hosting):
    async def work(hosting):
        entries = {entry.name: entry for entry in hosting.entries()}
        assert entries["good"].state == "READY"
        assert entries["gone"].state == "UNAVAILABLE"
        assert "no checkpoint for gone" in entries["gone"].reason
        assert "golden input 3" in entries["hurt"].reason
        assert (await ask(hosting, "good", "1")).logits.shape == (1, 2)
        refusal = await ask(hosting, "gone", "1")
        assert isinstance(refusal, NotReady)
        assert "no checkpoint" in str(refusal)
        ready = {name: value(hosting, f'fewshard_model_ready{{model="{name}"}}') for name in entries}
        assert ready == {"gone": 0, "good": 1, "hurt": 0}

    on_hosting(work, {"gone": "missing", "good": "dense", "hurt": "damaged"})


def test_a_model_that_failed_answers_503_over_http_with_the_reason(on_hosting):
    async def work(hosting):
        app = HostApp(MergedService(hosting, {}, ask_peers=None))
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://host") as client:
            refused = await client.post("/v2/models/gone/classify", json={"inputs": "1"})
            ready = await client.get("/v2/models/gone/ready")
            good = await client.post("/v2/models/good/classify", json={"inputs": "1"})
        assert (refused.status_code, ready.status_code, good.status_code) == (503, 503, 200)
        assert "no checkpoint for gone" in refused.json()["error"]

    on_hosting(work, {"gone": "missing", "good": "dense"})


def test_errors_are_returned_to_other_processes_and_survive_the_journey(on_hosting):
    async def work(hosting):
        unusable = await ask(hosting, "a", "1", "unusable")
        unknown = await ask(hosting, "nobody", "1")
        assert hosting.statistics("a").requests["fail"].count == 1
        return [pickle.loads(pickle.dumps(error)) for error in (unusable, unknown)]

    unusable, unknown = on_hosting(work, {"a": "dense"})
    assert isinstance(unusable, UnusableItem)
    assert (unusable.index, str(unusable)) == (1, "item 1: it says so")
    assert isinstance(unknown, UnknownModel)
    assert "there are: a" in str(unknown)


def test_an_overload_keeps_its_retry_after_when_pickled():
    error = pickle.loads(pickle.dumps(Overloaded("full", 2.5)))
    assert (type(error), str(error), error.retry_after_s) == (Overloaded, "full", 2.5)


def test_draining_refuses_the_new_and_answers_what_is_inside(on_hosting):
    async def work(hosting):
        app = CountedApp(HostApp(MergedService(hosting, {}, ask_peers=None)))
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://host") as client:
            inside = asyncio.create_task(client.post("/v2/models/a/classify", json={"inputs": "sleep 0.5"}))
            while not app.num_active:
                await asyncio.sleep(0.01)
            await asyncio.sleep(0.1)
            hosting.begin_drain()
            refused = await client.post("/v2/models/a/classify", json={"inputs": "1"})
            for_gateway = await ask(hosting, "a", "1")
            assert not inside.done() or inside.result().status_code == 200
            assert await app.idle(5.0)
            assert (await inside).status_code == 200
        assert (refused.status_code, refused.json()["code"]) == (503, "not_ready")
        assert for_gateway.logits.shape == (1, 2), "the gateway's accepted requests still go through"
        assert hosting.entries()[0].state == "UNAVAILABLE"

    on_hosting(work, {"a": "dense"})


def test_idle_gives_up_when_time_is_up():
    async def never(scope, receive, send):
        await asyncio.sleep(30)

    async def work():
        app = CountedApp(never)
        task = asyncio.create_task(app({"type": "http"}, None, None))
        await asyncio.sleep(0)
        assert await app.idle(0.05) is False
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        assert await app.idle(0.05) is True

    asyncio.run(work())


def test_several_replicas_speak_with_one_voice(host_spec):
    async def work():
        replicas = [
            await Replica.open(host_spec({"m": "moe"}, replicas=ReplicasConfig(min=1, max=2)))
            for _ in range(2)
        ]

        async def ask_peers(method, *args):
            names = {"stats_part": "statistics", "routing_part": "routing"}
            if method == "diagnosis_part":
                return [replica.diagnosis(*args) for replica in replicas]
            answers = [getattr(replica, names[method])(*args) for replica in replicas]
            return [await one if asyncio.iscoroutine(one) else one for one in answers]

        for number, replica in enumerate(replicas):
            for _ in range(number + 1):
                await ask(replica, "m", "1", "2")
        service = MergedService(replicas[0], {"replica": "r"}, ask_peers)
        stats = await service.merged_stats("m")
        experts = await service.merged_experts("m")
        assert stats["replicas"] == experts["replicas"] == 2
        assert stats["model_stats"][0]["inference_count"] == 6
        assert experts["layers"][0]["tokens"] == [6, 0]
        assert b'replica="r"' in await service.metrics_text(False)
        for replica in replicas:
            await replica.finish_drain(5.0)

    asyncio.run(work())


def test_a_model_without_experts_has_none_to_merge(on_hosting):
    async def work(hosting):
        async def ask_peers(method, *args):
            return [await hosting.routing(*args)]

        service = MergedService(hosting, {}, ask_peers)
        assert await service.merged_experts("a") is None
        with pytest.raises(UnknownModel):
            await service.merged_experts("nobody")

    on_hosting(work, {"a": "dense"})


def test_a_model_that_is_killed_costs_time_and_nothing_else(on_hosting):
    """Loading again takes longer than a pass may, and is not taken for a pass that hangs."""

    async def work(hosting):
        await ask(hosting, "a", "3")
        hosting._engine._runner._models[0].pace = PassTimeout(min_s=0.4, max_s=0.4)
        first = hosting._process.pid
        asked = asyncio.create_task(ask(hosting, "a", "sleep 0.3", "7"))
        await asyncio.sleep(0.2)
        os.kill(first, signal.SIGKILL)
        num_checks = 0
        while not asked.done():
            if hosting._process.is_restarting:
                hosting.check()
                num_checks += 1
            await asyncio.sleep(0.02)
        assert (await asked).logits.tolist() == [[1, -1], [7, -7]]
        assert num_checks > 20
        assert hosting._process.pid != first
        hosting.check()

    on_hosting(work, {"a": "heavy"})


def test_processor_time_and_memory_of_the_models_process_count(on_hosting):
    def cpu_s(hosting):
        return value(hosting, "fewshard_process_cpu_seconds_total{}")

    async def work(hosting):
        bytes_here = int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
        assert value(hosting, "fewshard_process_resident_bytes{}") > bytes_here + 5e6
        before, own = cpu_s(hosting), time.process_time()
        await ask(hosting, "a", "spin 0.5")
        assert cpu_s(hosting) - before > 0.4 + time.process_time() - own - 0.1
        before = cpu_s(hosting)
        os.kill(hosting._process.pid, signal.SIGKILL)
        await ask(hosting, "a", "1")
        assert cpu_s(hosting) >= before

    on_hosting(work, {"a": "dense"})
