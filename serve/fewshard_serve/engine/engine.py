"""Admits the requests for one replica's models and answers them in batches; the replica calls it."""

import asyncio
import time
from collections.abc import Callable, Coroutine, Mapping, Sequence
from functools import partial
from typing import Any

from fewshard_core.values import Input, Item
from fewshard_models.classifier.base import Classifier
from fewshard_serve.core import BatchStats, Caller, Classified, PredictionRequest, Timings
from fewshard_serve.engine.admission import Ticket
from fewshard_serve.engine.batch import MIN_ALLOWED_S
from fewshard_serve.engine.model_handle import ModelHandle, handle
from fewshard_serve.engine.preparer import Preparer
from fewshard_serve.engine.preparing_cost import heavy_cost
from fewshard_serve.engine.queue import Answer, Entry, RequestFuture, Resolution
from fewshard_serve.engine.runner import Runner
from fewshard_serve.engine.scheduled_model import ScheduledModel
from fewshard_serve.engine.settings import EngineSettings
from fewshard_serve.engine.watch import LOOK_S
from fewshard_serve.errors import (
    DeadlineExceeded,
    InternalError,
    MalformedRequest,
    NotReady,
    UnknownModel,
)

DRAIN_POLL_S = 0.02
PROBER = Caller("probe", is_urgent=True, is_probing=True)
MANY_INPUTS = 64
LATE = "the deadline passed before the model answered; send less or wait"
STUCK = "this replica hangs and is being replaced; come back soon"


class Engine:
    """The models of one replica, the runner's threads and a small pool that prepares inputs.

    Build and use it on one event loop.

    settings: each model's settings, by model name; defaults apply to the others.
    on_batch: called from a runner thread, once per batch.
    depth: the number of batches that the models may hold at a time.
    """

    def __init__(
        self,
        models: Sequence[Classifier],
        settings: Mapping[str, EngineSettings],
        on_batch: Callable[[BatchStats], None],
        depth: int = 1,
    ) -> None:
        self.served = {
            model.info.name: handle(model, settings, partial(self._probe, model)) for model in models
        }
        self._loop = asyncio.get_running_loop()
        self._preparer = Preparer()
        scheduled = [served.lane for served in self.served.values()]
        self._runner = Runner(scheduled, self._deliver, on_batch, depth=depth)
        self._is_draining = self._is_stuck = False
        self._arrived: dict[str, list[Entry]] = {}
        self._runner.start()
        self._looking = self._loop.call_later(LOOK_S, self._look)

    async def classify(self, model: str, request: PredictionRequest) -> Classified:
        """Return the logits of the request's inputs, in input order.

        If the caller is cancelled, its items leave the queue. Raises `UnknownModel`, `NotReady`,
        `MalformedRequest` (no inputs), `TooLarge`, `Overloaded`, `UnusableItem`, `DeadlineExceeded` or
        `InternalError`.
        """
        served = self._accepting(model)
        if not request.inputs:
            raise MalformedRequest("the request holds no inputs; send at least one")
        timeout_s = request.timeout_s
        allowed_s = served.deadline_s if timeout_s is None else min(timeout_s, served.deadline_s)
        deadline_at = time.monotonic() + allowed_s
        inputs, caller = request.inputs, request.caller
        costs = await _costs_of(served.lane.model, inputs)
        heavy = heavy_cost(costs)
        served.check_heavy(heavy, caller)
        num_tokens = served.lane.model.estimate_tokens(inputs)
        ticket = served.admission.admit(len(inputs), num_tokens, caller)
        with ticket, served.heavy.held(heavy, caller):
            try:
                work = self._classify_admitted(served, request, costs, deadline_at, ticket)
                classified = await self._in_time(work, deadline_at)
                served.watch.note_answer()
                return classified
            except InternalError:
                served.watch.note_failure()
                raise
            except DeadlineExceeded:
                _note_wait(ticket, time.monotonic() - ticket.admitted_at, costs)
                raise

    def check_room(self, model: str, caller: Caller) -> None:
        """Raise `Overloaded` if a request of any size would be refused now."""
        self._accepting(model).admission.check(caller)

    def check(self) -> None:
        """Raise `InternalError` if the runner has died, or if its pass or the preparing of inputs hangs.

        Where it is the runner, waiting requests fail with `NotReady`, and so do new ones until the pass ends.
        """
        self._check_preparer()
        self._is_stuck = self._runner.is_stuck
        if not self._runner.is_alive and not self._is_draining:
            self._is_stuck = True
        if not self._is_stuck:
            return
        self._runner.fail_all(NotReady(STUCK))
        if not self._runner.is_alive:
            raise InternalError("the runner's thread has ended. This is a bug.")
        raise InternalError(f"a forward pass has been running for {self._runner.stuck_s:.0f} s and hangs")

    def _check_preparer(self) -> None:
        """No input is so costly that a slice takes longer than the models' deadlines."""
        allowed_s = max([MIN_ALLOWED_S, *(served.deadline_s for served in self.served.values())])
        if (longest_s := self._preparer.longest_s) > allowed_s:
            raise InternalError(f"preparing an input has been running for {longest_s:.0f} s and hangs")

    @property
    def num_inflight_items(self) -> int:
        """The number of items, over all models, that were admitted but are not answered yet."""
        return sum(served.num_inflight_items for served in self.served.values())

    async def drain(self, timeout_s: float | None = None) -> bool:
        """Refuse new requests, answer the admitted ones and end the threads. Return False on a timeout."""
        self._is_draining = True
        self._looking.cancel()
        for served in self.served.values():
            served.watch.close()
        give_up_at = float("inf") if timeout_s is None else time.monotonic() + timeout_s
        while self.num_inflight_items and time.monotonic() < give_up_at:
            await asyncio.sleep(DRAIN_POLL_S)
        left_s = None if timeout_s is None else max(0.0, give_up_at - time.monotonic())
        has_ended = await asyncio.to_thread(self._runner.stop, left_s)
        await asyncio.to_thread(self._preparer.close)
        return has_ended

    def _accepting(self, model: str) -> ModelHandle:
        if self._is_draining:
            raise NotReady("the server is draining; ask another replica or come back")
        if self._is_stuck:
            raise NotReady(STUCK)
        try:
            return self.served[model]
        except KeyError:
            raise UnknownModel(model, sorted(self.served)) from None

    def _look(self) -> None:
        self._looking = self._loop.call_later(LOOK_S, self._look)
        for served in self.served.values():
            lane = served.lane
            is_busy = self._runner.is_running(lane) or self._preparer.is_preparing(lane.model)
            served.watch.look(served.num_inflight_items > 0 or is_busy)

    async def _probe(self, model: Classifier) -> None:
        """Ask the model its probe input. It needs no room: a full model may be one that does not answer."""
        served = self.served[model.info.name]
        items = await self._preparer.prepare(model, [model.probe_input()], True, PROBER)
        await self._answer(served, items, time.monotonic(), float("inf"), PROBER)

    async def _in_time(self, work: Coroutine[Any, Any, Classified], deadline_at: float) -> Classified:
        """Await `work`. Raises `DeadlineExceeded` when it runs past `deadline_at` (monotonic seconds)."""
        timeout = asyncio.timeout_at(deadline_at - time.monotonic() + self._loop.time())
        try:
            async with timeout:
                return await work
        except TimeoutError:
            if not timeout.expired():
                raise
            raise DeadlineExceeded(LATE) from None

    async def _classify_admitted(
        self,
        served: ModelHandle,
        request: PredictionRequest,
        costs: Sequence[int],
        deadline_at: float,
        ticket: Ticket,
    ) -> Classified:
        started_at = time.monotonic()
        items = await self._preparer.prepare(
            served.lane.model,
            request.inputs,
            request.truncate,
            ticket.caller,
            costs=costs,
            deadline_at=deadline_at,
            is_alone=self.num_inflight_items == len(request.inputs),
        )
        prepared_at = time.monotonic()
        answer = await self._answer(served, items, prepared_at, deadline_at, ticket.caller)
        _note_wait(ticket, prepared_at - started_at + answer.queue_s, costs)
        timings = Timings(prepared_at - started_at, answer.queue_s, answer.infer_s, answer.exchange_s)
        num_tokens = sum(item.num_tokens for item in items)
        routing = tuple(item.routing for item in items if item.routing is not None)
        tokens = tuple(item.tokens for item in items if item.tokens is not None)
        return Classified(
            answer.logits, num_tokens, timings, answer.is_degraded, routing=routing, tokens=tokens
        )

    async def _answer(
        self,
        served: ModelHandle,
        items: Sequence[Item],
        enqueued_at: float,
        deadline_at: float,
        caller: Caller,
    ) -> Answer:
        future, is_probe = RequestFuture(len(items)), caller is PROBER
        entries = [
            Entry(item, future, index, enqueued_at, deadline_at, caller, is_probe)
            for index, item in enumerate(items)
        ]
        self._submit(served.lane, entries)
        return await future.answer

    def _submit(self, lane: ScheduledModel, entries: list[Entry]) -> None:
        """Queue the entries together with those of all requests that the event loop has at hand.

        Otherwise the first of many that arrive together would run in a pass of its own.
        """
        if not self._arrived:
            self._loop.call_soon(self._submit_arrived)
        self._arrived.setdefault(lane.model.info.name, []).extend(entries)

    def _submit_arrived(self) -> None:
        arrived, self._arrived = self._arrived, {}
        for name, entries in arrived.items():
            try:
                self._runner.submit(self.served[name].lane, entries)
            except NotReady as error:
                _settle([Resolution(entry, error, 0.0, 0.0) for entry in entries])

    def _deliver(self, resolutions: list[Resolution]) -> None:
        self._loop.call_soon_threadsafe(_settle, resolutions)


async def _costs_of(model: Classifier, inputs: Sequence[Input]) -> list[int]:
    """The inputs' costs. Another thread finds those of many: the header of an image takes 20 to 50 us."""
    if len(inputs) < MANY_INPUTS:
        return model.costs(inputs)
    return await asyncio.to_thread(model.costs, inputs)


def _note_wait(ticket: Ticket, wait_s: float, costs: Sequence[int]) -> None:
    """Let the limits adapt, unless inputs are heavy: their own length must not cost the others their room."""
    if not heavy_cost(costs):
        ticket.note_wait(wait_s)


def _settle(resolutions: list[Resolution]) -> None:
    for resolution in resolutions:
        resolution.entry.caller.settle(resolution)
