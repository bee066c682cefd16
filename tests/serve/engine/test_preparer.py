"""Preparing in slices: late and abandoned work ends, and large inputs hold up nobody else."""

import asyncio
import threading
import time

import pytest

from fewshard_core.values import TextInput
from fewshard_serve.core import Caller
from fewshard_serve.engine import preparer
from fewshard_serve.engine.preparer import INLINE_S, Preparer
from fewshard_serve.engine.preparing_cost import SLICE_COST
from fewshard_serve.errors import DeadlineExceeded, NotReady, UnusableItem

LONG = "x" * (SLICE_COST + 1)
A, B = Caller("a"), Caller("b")


class Opened:
    """A preparer of one core, and a model whose long texts wait for `gate`."""

    def __init__(self, new_model):
        self.model = new_model()
        self.other = new_model("other")
        self.begun = threading.Semaphore(0)
        self.gate = threading.Event()
        self.sizes = []
        self.threads = {}
        self._prepare = self.model.prepare
        self.model.prepare = self.prepare

    def prepare(self, inputs, truncate=True):
        self.sizes.append(len(inputs))
        self.threads[inputs[0].text[:5]] = threading.current_thread().name
        self.begun.release()
        if inputs[0].text == LONG:
            assert self.gate.wait(30)
        return self._prepare(inputs, truncate)

    async def __aenter__(self):
        self.preparer = Preparer(num_threads=1)
        return self

    async def __aexit__(self, *_):
        self.gate.set()
        await asyncio.to_thread(self.preparer.close)

    def start(self, *texts, caller=A, model=None, **options):
        given = [TextInput(text) for text in texts]
        return asyncio.create_task(self.preparer.prepare(model or self.model, given, True, caller, **options))

    async def has_begun(self, times=1):
        for _ in range(times):
            assert await asyncio.to_thread(self.begun.acquire, timeout=10)


@pytest.fixture
def opened(new_model):
    return Opened(new_model)


def test_small_inputs_are_prepared_together_and_large_ones_alone(opened):
    async def run():
        async with opened:
            opened.gate.set()
            texts = ["1", "2", LONG, "3", "y" * SLICE_COST, "4"]
            items = await opened.start(*texts)
            assert [item.features for item in items] == texts
            assert opened.sizes == [2, 1, 1, 1, 1]

    asyncio.run(run())


def test_the_index_of_an_unusable_input_counts_from_the_first(opened):
    async def run():
        async with opened:
            opened.gate.set()
            with pytest.raises(UnusableItem, match="item 3: it says so"):
                await opened.start("1", LONG, "2", "unusable", "unusable")

    asyncio.run(run())


def test_the_rest_of_an_abandoned_request_is_never_prepared(opened):
    async def run():
        async with opened:
            task = opened.start(LONG, LONG, "1")
            await opened.has_begun()
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            opened.gate.set()
        assert opened.model.num_prepared == 1

    asyncio.run(run())


def test_the_rest_of_a_late_request_is_never_prepared(opened):
    async def run():
        async with opened:
            task = opened.start(LONG, LONG, "1", deadline_at=time.monotonic() + 0.05)
            await opened.has_begun()
            await asyncio.sleep(0.1)
            opened.gate.set()
            with pytest.raises(DeadlineExceeded, match="deadline passed while"):
                await task
        assert opened.model.num_prepared == 1

    asyncio.run(run())


def test_large_inputs_of_several_callers_do_not_hold_up_a_small_one(opened):
    async def run():
        async with opened:
            large = [opened.start(LONG, caller=Caller(str(number))) for number in range(6)]
            await opened.has_begun(2)
            (item,) = await asyncio.wait_for(opened.start("7", caller=B), 10)
            (elsewhere,) = await asyncio.wait_for(opened.start("8", model=opened.other), 10)
            assert (item.features, elsewhere.features) == ("7", "8")
            assert not any(task.done() for task in large)
            opened.gate.set()
            await asyncio.gather(*large)
            assert "heavy" in opened.threads["xxxxx"]
            assert "light" in opened.threads["7"]

    asyncio.run(run())


def test_one_caller_does_not_take_every_thread_for_large_inputs(opened):
    async def run():
        async with opened:
            first = [opened.start(LONG, caller=A) for _ in range(3)]
            await opened.has_begun()
            other = opened.start(LONG, caller=B)
            await opened.has_begun()
            await asyncio.sleep(0.05)
            assert opened.sizes == [1, 1], "one thread each: the second is kept for another caller"
            opened.gate.set()
            await asyncio.gather(*first, other)
        assert opened.model.num_prepared == 4

    asyncio.run(run())


def test_a_closed_preparer_refuses_what_waits(opened):
    async def run():
        async with opened:
            running, waiting = opened.start(LONG, "1"), opened.start(LONG)
            await opened.has_begun()
            closing = asyncio.create_task(asyncio.to_thread(opened.preparer.close))
            await asyncio.sleep(0.05)
            opened.gate.set()
            await closing
            for task in (running, waiting, opened.start("1")):
                with pytest.raises(NotReady, match="draining"):
                    await task

    asyncio.run(run())


def test_what_is_cheap_is_prepared_on_the_event_loop_and_more_only_if_it_is_alone(opened, monkeypatch):
    monkeypatch.setattr(preparer, "INLINE_S", 60.0)  # however busy the machine is

    async def threads():
        async with opened as given:
            loop = threading.current_thread().name
            for text in ("tiny", "small" * 20, "large" * 200):
                for is_alone in (False, True):
                    await given.start(text, is_alone=is_alone)
                    yield text[:5], is_alone, given.threads[text[:5]] == loop

    async def collected():
        return [each async for each in threads()]

    assert asyncio.run(collected()) == [
        ("tiny", False, True),
        ("tiny", True, True),
        ("small", False, False),
        ("small", True, True),
        ("large", False, False),
        ("large", True, False),
    ]


def test_nothing_is_prepared_on_the_event_loop_while_a_thread_works(opened):
    async def run():
        async with opened as given:
            slow = given.start(LONG)
            await given.has_begun()
            await given.start("tiny", is_alone=True)
            given.gate.set()
            await slow
            return given.threads["tiny"]

    assert asyncio.run(run()).startswith("fewshard-prepare")


def test_a_model_that_is_slow_twice_uses_the_threads(opened):
    async def run():
        async with opened as given:
            loop, found = threading.current_thread().name, []
            given.model.prepare_s = 2 * INLINE_S
            for _ in range(4):
                await given.start("tiny")
                found.append(given.threads["tiny"] == loop)
            return found

    assert asyncio.run(run()) == [True, True, False, False]
