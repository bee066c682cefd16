"""The whole engine on one event loop, with a model of numpy: no Ray, no HTTP, no torch."""

import asyncio
import functools
import subprocess
import sys
import threading
import time

import numpy as np
import pytest

from fewshard_core.values import TextInput
from fewshard_serve.core import Caller, PredictionRequest
from fewshard_serve.engine import AdmissionSettings, BatchingSettings, Engine, EngineSettings
from fewshard_serve.engine.batch import PassTimeout
from fewshard_serve.errors import (
    DeadlineExceeded,
    InternalError,
    MalformedRequest,
    NotReady,
    Overloaded,
    TooLarge,
    UnknownModel,
    UnusableItem,
)


def on_a_loop(test):
    """Run an async test on a loop of its own."""

    @functools.wraps(test)
    def run(*args, **kwargs):
        asyncio.run(asyncio.wait_for(test(*args, **kwargs), 30))

    return run


class Opened:
    """An engine over models, drained at the end of the `async with`."""

    def __init__(self, *models, **settings):
        self.models = models
        self.settings = settings
        self.stats = []

    async def __aenter__(self):
        settings = {model.info.name: EngineSettings(**self.settings) for model in self.models}
        self.engine = Engine(self.models, settings, self.stats.append)
        return self

    async def __aexit__(self, *_):
        for model in self.models:
            model.gate.set()
        assert await self.engine.drain(5.0)

    def classify(self, *texts, model="fake", **kwargs):
        return self.engine.classify(model, PredictionRequest([TextInput(text) for text in texts], **kwargs))


async def until(condition, within_s=5.0):
    give_up_at = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < give_up_at, "waited in vain"
        await asyncio.sleep(0.002)


@on_a_loop
async def test_logits_in_the_callers_order(model):
    async with Opened(model) as opened:
        classified = await opened.classify("1", "22", "3")
        assert classified.logits.dtype == np.float32
        assert classified.logits.tolist() == [[1, -1], [22, -22], [3, -3]]
        assert classified.num_tokens == 4
        assert opened.engine.num_inflight_items == 0


@on_a_loop
async def test_concurrent_requests_share_batches_and_get_their_own_answers(model):
    async with Opened(model) as opened:
        model.gate.clear()
        tasks = [asyncio.create_task(opened.classify(str(n), str(n + 1000))) for n in range(50)]
        await until(lambda: model.num_prepared == 100)
        model.gate.set()
        for n, classified in enumerate(await asyncio.gather(*tasks)):
            assert classified.logits[:, 0].tolist() == [n, n + 1000]
        assert len(model.batches) < 50, "requests were batched together"
        assert sum(stats.num_items for stats in opened.stats) == 100


@on_a_loop
async def test_a_request_larger_than_a_batch_is_spread(model):
    async with Opened(model, batching=BatchingSettings(max_items=8)) as opened:
        classified = await opened.classify(*(str(n) for n in range(30)))
        assert classified.logits[:, 0].tolist() == list(range(30))
        assert [len(batch) for batch in model.batches] == [8, 8, 8, 6]


@on_a_loop
async def test_timings_tell_the_stages_apart(model):
    async with Opened(model) as opened:
        model.prepare_s = 0.05
        model.gate.clear()
        first = asyncio.create_task(opened.classify("1"))
        await until(model.running.is_set)
        second = asyncio.create_task(opened.classify("2"))
        await asyncio.sleep(0.2)
        model.gate.set()
        ran, waited = (await first).timings, (await second).timings
        assert 0.05 <= ran.preprocess_s < 0.2
        assert ran.infer_s >= 0.19
        assert ran.queue_s < 0.1
        assert 0.1 <= waited.queue_s < 0.3
        assert waited.infer_s < 0.1


@on_a_loop
async def test_refusals_come_before_any_preparation(model):
    async with Opened(model, admission=AdmissionSettings(max_items=3, max_tokens=50)) as opened:
        model.gate.clear()
        held = asyncio.create_task(opened.classify("1", "2"))
        await until(model.running.is_set)
        prepared = model.num_prepared
        with pytest.raises(Overloaded) as refusal:
            await opened.classify("3", "4")
        assert refusal.value.retry_after_s > 0
        with pytest.raises(TooLarge, match="at most 3"):
            await opened.classify("1", "2", "3", "4")
        with pytest.raises(TooLarge, match="at most 50"):
            await opened.classify("x" * 51)
        assert model.num_prepared == prepared
        model.gate.set()
        await held
        assert (await opened.classify("3", "4")).logits.shape == (2, 2)


@on_a_loop
async def test_an_unusable_item_names_its_index_and_spoils_nobody(model):
    async with Opened(model) as opened:
        model.gate.clear()
        good = asyncio.create_task(opened.classify("1"))
        for texts in (["1", "2", "unusable"], ["1", "2", "refuse"]):
            bad = asyncio.create_task(opened.classify(*texts))
            await asyncio.sleep(0.02)
            model.gate.set()
            with pytest.raises(UnusableItem) as error:
                await bad
            assert error.value.index == 2
        assert (await good).logits[0, 0] == 1
        assert opened.engine.num_inflight_items == 0


@on_a_loop
async def test_a_crashing_item_fails_its_request_alone(model):
    async with Opened(model) as opened:
        model.gate.clear()
        blocker = asyncio.create_task(opened.classify("0"))
        await until(model.running.is_set)
        tasks = [asyncio.create_task(opened.classify(text)) for text in ("1", "crash", "3", "nan", "5")]
        await until(lambda: model.num_prepared == 6)
        model.gate.set()
        await blocker
        answers = await asyncio.gather(*tasks, return_exceptions=True)
        assert [type(one) if isinstance(one, Exception) else one.logits[0, 0] for one in answers] == [
            1,
            InternalError,
            3,
            InternalError,
            5,
        ]


@on_a_loop
async def test_a_tokenizer_that_breaks_is_an_internal_error(model):
    async with Opened(model) as opened:
        with pytest.raises(InternalError, match="KeyError"):
            await opened.classify("broken")
        assert (await opened.classify("1")).logits[0, 0] == 1


@on_a_loop
async def test_a_cancelled_callers_items_never_run(model):
    async with Opened(model) as opened:
        model.gate.clear()
        first = asyncio.create_task(opened.classify("1"))
        await until(model.running.is_set)
        left = asyncio.create_task(opened.classify("2", "3"))
        stayed = asyncio.create_task(opened.classify("4"))
        await until(lambda: opened.engine.served["fake"].num_queued_items == 3)
        left.cancel()
        with pytest.raises(asyncio.CancelledError):
            await left
        assert opened.engine.num_inflight_items == 2, "the room of the one who left is free"
        model.gate.set()
        await asyncio.gather(first, stayed)
        assert model.batches == [["1"], ["4"]]


@on_a_loop
async def test_the_deadline_ends_the_wait_and_the_item_never_runs(model):
    async with Opened(model) as opened:
        model.gate.clear()
        first = asyncio.create_task(opened.classify("1"))
        await until(model.running.is_set)
        started_at = time.monotonic()
        with pytest.raises(DeadlineExceeded):
            await opened.classify("2", timeout_s=0.1)
        assert 0.09 <= time.monotonic() - started_at < 1.0
        model.gate.set()
        await first
        assert model.batches == [["1"]]


@on_a_loop
async def test_a_caller_cannot_lengthen_the_models_deadline(model):
    async with Opened(model, admission=AdmissionSettings(deadline_ms=100)) as opened:
        model.gate.clear()
        with pytest.raises(DeadlineExceeded):
            await opened.classify("1", timeout_s=60)


@on_a_loop
async def test_a_time_out_of_the_callers_own_is_not_ours(model):
    async with Opened(model) as opened:
        model.gate.clear()
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(opened.classify("1"), 0.05)


@on_a_loop
async def test_unknown_models_and_empty_requests(model):
    async with Opened(model) as opened:
        with pytest.raises(UnknownModel, match="there are: fake"):
            await opened.classify("1", model="nobody")
        with pytest.raises(MalformedRequest):
            await opened.classify()


@on_a_loop
async def test_models_share_one_runner_and_keep_their_own_limits(new_model):
    first, second = new_model("first"), new_model("second")
    async with Opened(first, second, admission=AdmissionSettings(max_items=2)) as opened:
        answers = await asyncio.gather(
            *(opened.classify(str(n), str(n), model=name) for n, name in ((1, "first"), (2, "second")))
        )
        assert [one.logits[0, 0] for one in answers] == [1, 2]
        assert (len(first.batches), len(second.batches)) == (1, 1)


@on_a_loop
async def test_drain_answers_what_was_admitted_and_refuses_the_rest(model):
    async with Opened(model) as opened:
        model.gate.clear()
        tasks = [asyncio.create_task(opened.classify(str(n))) for n in range(5)]
        await until(model.running.is_set)
        draining = asyncio.create_task(opened.engine.drain(5.0))
        await asyncio.sleep(0.05)
        with pytest.raises(NotReady):
            await opened.classify("9")
        assert not draining.done()
        model.gate.set()
        assert await draining is True
        assert [one.logits[0, 0] for one in await asyncio.gather(*tasks)] == list(range(5))


@on_a_loop
async def test_a_stuck_pass_sends_those_who_wait_elsewhere(model):
    async with Opened(model, batching=BatchingSettings(max_items=1)) as opened:
        opened.engine.served["fake"].lane.pace = PassTimeout(min_s=0.1, max_s=0.1)
        opened.engine.check()
        model.gate.clear()
        inside = [asyncio.create_task(opened.classify(text)) for text in "12"]
        await until(model.running.is_set)
        opened.engine.check()
        await asyncio.sleep(0.15)
        with pytest.raises(InternalError, match="hangs"):
            opened.engine.check()
        for task in inside:
            with pytest.raises(NotReady, match="being replaced"):
                await task
        with pytest.raises(NotReady, match="being replaced"):
            await opened.classify("3")
        model.gate.set()
        await until(lambda: len(model.batches) == 1 and not opened.engine.num_inflight_items)
        await asyncio.sleep(0.05)
        opened.engine.check()
        assert (await opened.classify("4")).logits[0, 0] == 4
        assert len(model.batches) == 2, "what was sent elsewhere is not run here"


@on_a_loop
async def test_the_loop_stays_free_while_the_model_runs(model):
    async with Opened(model) as opened:
        model.gate.clear()
        task = asyncio.create_task(opened.classify("1"))
        await until(model.running.is_set)
        ticks = 0
        for _ in range(20):
            await asyncio.sleep(0.001)
            ticks += 1
        assert ticks == 20
        assert not task.done()


def test_the_engine_needs_neither_torch_nor_ray_nor_prometheus():
    heavy = "{'torch', 'ray', 'transformers', 'prometheus_client', 'starlette'}"
    code = f"import sys, fewshard_serve.engine; sys.exit(str({heavy} & set(sys.modules) or ''))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stderr.strip() == ""


@on_a_loop
async def test_a_flood_does_not_delay_another_caller(model):
    async with Opened(model, batching=BatchingSettings(max_items=1)) as opened:
        model.gate.clear()
        flood = [asyncio.create_task(opened.classify(str(n), caller=Caller("flood"))) for n in range(100)]
        await until(lambda: model.num_prepared == 100)
        guest = asyncio.create_task(opened.classify("1000", caller=Caller("guest")))
        await until(lambda: model.num_prepared == 101)
        model.gate.set()
        await guest
        assert model.batches.index(["1000"]) <= 2
        await asyncio.gather(*flood)


@on_a_loop
async def test_a_flood_of_slow_inputs_does_not_delay_the_preparation_of_others(model):
    async with Opened(model) as opened:
        model.prepare_s = 0.02
        flood = [asyncio.create_task(opened.classify(str(n), caller=Caller("flood"))) for n in range(100)]
        await until(lambda: model.num_prepared >= 5)
        guest = await opened.classify("1000", caller=Caller("guest"))
        assert guest.logits[0, 0] == 1000
        assert model.num_prepared < 50
        await asyncio.gather(*flood)


@on_a_loop
async def test_the_limit_learns_from_waits_and_from_deadlines(model):
    async with Opened(
        model, admission=AdmissionSettings(min_items=2, queue_ms=50, deadline_ms=200)
    ) as opened:
        admission = opened.engine.served["fake"].admission
        before = admission.limit_items
        model.gate.clear()
        tasks = [asyncio.create_task(opened.classify(str(n))) for n in range(20)]
        outcomes = await asyncio.gather(*tasks, return_exceptions=True)
        assert {type(outcome) for outcome in outcomes} == {DeadlineExceeded}
        assert admission.limit_items < before
        model.gate.set()


@on_a_loop
async def test_room_can_be_asked_for_before_a_request_is_read(model):
    async with Opened(model, admission=AdmissionSettings(max_items=4)) as opened:
        opened.engine.check_room("fake", Caller("a"))
        model.gate.clear()
        task = asyncio.create_task(opened.classify("1", "2", "3", "4"))
        await until(model.running.is_set)
        with pytest.raises(Overloaded):
            opened.engine.check_room("fake", Caller("b"))
        with pytest.raises(UnknownModel):
            opened.engine.check_room("nobody", Caller("b"))
        model.gate.set()
        await task


@on_a_loop
async def test_what_preparing_would_cost_is_admitted_before_it_is_done(model):
    large = "0" * 20_000
    limits = AdmissionSettings(max_heavy_cost=50_000)
    async with Opened(model, admission=limits) as opened:
        with pytest.raises(TooLarge, match=r"cost 60000 .* at most 50000 .*admission.max_heavy_cost"):
            await opened.classify(large, large, large)
        assert model.num_prepared == 0
        model.gate.clear()
        held = asyncio.create_task(opened.classify(large, large))
        await until(model.running.is_set)
        with pytest.raises(Overloaded, match="large inputs"):
            await opened.classify(large, caller=Caller("other"))
        light = asyncio.create_task(opened.classify(*["1"] * 100, caller=Caller("other")))
        await until(lambda: model.num_prepared == 102)
        model.gate.set()
        await asyncio.gather(held, light)
        await opened.classify(large, caller=Caller("other"))


@on_a_loop
async def test_the_length_of_large_inputs_does_not_lower_the_limit(model):
    limits = AdmissionSettings(min_items=2, queue_ms=50, deadline_ms=200)
    async with Opened(model, admission=limits) as opened:
        before = opened.engine.served["fake"].admission.limit_items
        model.prepare_s = 0.3
        with pytest.raises(DeadlineExceeded):
            await opened.classify("1" * 20_000)
        assert opened.engine.served["fake"].admission.limit_items == before
        with pytest.raises(DeadlineExceeded):
            await opened.classify("1")
        assert opened.engine.served["fake"].admission.limit_items < before


@on_a_loop
async def test_the_costs_of_many_inputs_are_found_off_the_event_loop(model, monkeypatch):
    threads = []
    monkeypatch.setattr(
        model, "costs", lambda inputs: threads.append(threading.current_thread()) or [1] * len(inputs)
    )
    async with Opened(model) as opened:
        await opened.classify("1")
        await opened.classify(*["1"] * 200)
    assert threads[0] is threading.main_thread()
    assert threads[1] is not threading.main_thread()


@on_a_loop
async def test_requests_that_arrive_together_run_together(model, monkeypatch):
    monkeypatch.setattr("fewshard_serve.engine.preparer.INLINE_S", 60.0)  # however busy the machine is
    async with Opened(model) as opened:
        await asyncio.gather(*(opened.classify(str(number)) for number in range(10)))
        assert model.batches == [[str(number) for number in range(10)]]


@on_a_loop
async def test_a_request_that_meets_a_stopped_runner_is_refused(model):
    async with Opened(model) as opened:
        asking = asyncio.create_task(opened.classify("1"))
        assert await asyncio.to_thread(opened.engine._runner.stop, 5.0)
        with pytest.raises(NotReady, match="draining"):
            await asking
