"""A model that answers nobody is not ready, whatever the reason, and is again once it answers."""

import asyncio
import functools
import threading
import time

import numpy as np
import pytest

from fewshard_core.values import ModelOutput, TextInput
from fewshard_serve.core import PredictionRequest
from fewshard_serve.engine import AdmissionSettings, Engine, EngineSettings
from fewshard_serve.engine.batch import PassTimeout
from fewshard_serve.engine.watch import SILENT_S, Watch
from fewshard_serve.errors import FewshardError, InternalError, ModelRestarted, UnusableItem


def on_a_loop(test):
    @functools.wraps(test)
    def run(*args, **kwargs):
        asyncio.run(asyncio.wait_for(test(*args, **kwargs), 30))

    return run


async def until(condition):
    give_up_at = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < give_up_at, "waited in vain"
        await asyncio.sleep(0.005)


class Watched:
    """A watch whose probe raises `error`, with a clock of its own."""

    def __init__(self, allowed_s=5.0):
        self.now, self.num_probes, self.error = 100.0, 0, None
        self.watch = Watch("m", self.ask, lambda: allowed_s, lambda: self.now)

    async def ask(self):
        self.num_probes += 1
        if isinstance(self.error, float):
            await asyncio.sleep(self.error)
        elif self.error is not None:
            raise self.error

    async def look(self, is_asked=True, after_s=0.1):
        """Look after some time, and wait for the probe if there is one."""
        self.now += after_s
        self.watch.look(is_asked)
        await until(lambda: self.watch._probing is None)


@on_a_loop
async def test_a_model_that_answers_or_is_not_asked_is_not_probed():
    watched = Watched()
    for _ in range(50):
        await watched.look(is_asked=False)
    for _ in range(50):
        watched.watch.note_answer()
        await watched.look()
    assert watched.num_probes == 0


@on_a_loop
async def test_the_probe_decides_and_keeps_trying():
    watched = Watched()
    watched.error = InternalError("device trouble")
    watched.watch.note_failure()
    await watched.look(is_asked=False)
    assert watched.watch.problem == "it answers nobody: device trouble"
    await watched.look(is_asked=False)
    assert watched.num_probes == 2
    watched.error = None
    await watched.look(is_asked=False)
    assert not watched.watch.problem
    await watched.look(is_asked=False)
    assert watched.num_probes == 3


@on_a_loop
async def test_inputs_on_which_a_model_fails_do_not_make_it_not_ready():
    for refusal in (None, UnusableItem(0, "no")):
        watched = Watched()
        watched.error = refusal
        watched.watch.note_failure()
        await watched.look()
        assert watched.num_probes == 1
        assert not watched.watch.problem


@on_a_loop
async def test_silence_while_requests_wait_is_a_reason_to_ask():
    watched = Watched(allowed_s=0.01)
    watched.error = 30.0
    await watched.look(after_s=SILENT_S / 2)
    assert watched.num_probes == 0
    await watched.look(after_s=SILENT_S)
    assert watched.watch.problem == "it answers nobody: it has not answered a small input within 0 s"
    watched.watch.note_answer()
    assert not watched.watch.problem


@on_a_loop
async def test_a_model_without_a_probe_input_counts_as_ready():
    watched = Watched()
    watched.error = AttributeError("preprocessor")
    for _ in range(3):
        watched.watch.note_failure()
        await watched.look()
    assert watched.num_probes == 1
    assert not watched.watch.problem


class Sick:
    """A model with a probe input, and one way in which it answers nobody; `heal` ends that."""

    def __init__(self, model, way):
        self.model, self.began, self._healed = model, threading.Event(), threading.Event()
        model.probe_input = lambda: TextInput("1")
        self._run, self._prepare = model.run, model.prepare
        setattr(model, "prepare" if way == "blocked" else "run", getattr(self, way))

    def heal(self):
        self._healed.set()
        self.model.run, self.model.prepare = self._run, self._prepare

    def raises(self, items):
        raise RuntimeError("device trouble")

    def gives_nan(self, items):
        return ModelOutput(np.full((len(items), 2), np.nan, np.float32))

    def loops(self, items):
        raise ModelRestarted("the process ended")

    def hangs(self, items):
        self.began.set()
        assert self._healed.wait(30)
        return self._run(items)

    def blocked(self, inputs, truncate=True):
        self.began.set()
        assert self._healed.wait(30)
        return self._prepare(inputs, truncate)


@pytest.fixture
def quick(monkeypatch):
    monkeypatch.setattr("fewshard_serve.engine.engine.LOOK_S", 0.01)
    monkeypatch.setattr("fewshard_serve.engine.watch.SILENT_S", 0.02)
    monkeypatch.setattr("fewshard_serve.engine.preparer.SMALL_INPUTS", 0)  # in threads alone


STATS = []


def started(model):
    """An engine, whose model answers quickly if it does, and a request to it."""
    engine = Engine([model], {"fake": EngineSettings()}, STATS.append)
    engine.served["fake"].lane.pace = PassTimeout(min_s=0.05, max_s=0.05)
    asked = asyncio.create_task(engine.classify("fake", PredictionRequest([TextInput("7")])))
    STATS.clear()
    return engine, engine.served["fake"].watch, asked


@pytest.mark.parametrize("way", ["raises", "gives_nan", "loops", "hangs", "blocked"])
@on_a_loop
async def test_a_model_that_answers_nobody_is_not_ready_until_it_answers(model, quick, way):
    sick = Sick(model, way)
    engine, watch, asked = started(model)
    await until(lambda: watch.problem)
    sick.heal()
    await asyncio.gather(asked, return_exceptions=True)
    await until(lambda: not watch.problem)
    assert await engine.drain(5.0)


@pytest.mark.parametrize("way", ["hangs", "blocked"])
@on_a_loop
async def test_it_is_found_out_also_when_its_callers_leave_soon(model, quick, way):
    sick = Sick(model, way)
    engine, watch, asked = started(model)
    await until(sick.began.is_set)
    asked.cancel()
    await until(lambda: watch.problem)
    sick.heal()
    await until(lambda: not watch.problem)
    assert await engine.drain(5.0)
    assert sum(stats.num_items for stats in STATS) <= 1, "a probe counts as no work"


@on_a_loop
async def test_health_tells_that_preparing_hangs(model, monkeypatch):
    monkeypatch.setattr("fewshard_serve.engine.engine.MIN_ALLOWED_S", 0.01)
    monkeypatch.setattr("fewshard_serve.engine.preparer.SMALL_INPUTS", 0)
    sick = Sick(model, "blocked")
    limits = EngineSettings(admission=AdmissionSettings(deadline_ms=50))
    engine = Engine([model], {"fake": limits}, lambda stats: None)
    engine.check()
    asked = asyncio.create_task(engine.classify("fake", PredictionRequest([TextInput("7")])))
    await until(lambda: engine._preparer.longest_s > 0.05)
    with pytest.raises(InternalError, match=r"preparing an input has been running for \d+ s and hangs"):
        engine.check()
    sick.heal()
    with pytest.raises(FewshardError):
        await asked
    await until(lambda: engine._preparer.longest_s < 0)
    engine.check()
    assert await engine.drain(5.0)
