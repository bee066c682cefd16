"""Admits the requests for one replica's models and answers them in batches; the replica calls it."""

import asyncio
import time
from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fewshard_core.values import Input, Item
from fewshard_models.classifier.base import PIXELS_PER_UNIT, Classifier
from fewshard_serve.core import BatchStats, Caller, Classified, PredictionRequest, Timings
from fewshard_serve.engine.admission import Admission, Ticket
from fewshard_serve.engine.budget import UNIT_S, Budget, heavy_cost
from fewshard_serve.engine.preparer import Preparer
from fewshard_serve.engine.queue import Answer, Entry, RequestFuture, Resolution
from fewshard_serve.engine.runner import Runner, ScheduledModel
from fewshard_serve.engine.settings import EngineSettings
from fewshard_serve.errors import (
    DeadlineExceeded,
    InternalError,
    MalformedRequest,
    NotReady,
    Overloaded,
    TooLarge,
    UnknownModel,
)

DRAIN_POLL_S = 0.02
MANY_INPUTS = 64
LATE = "the deadline passed before the model answered; send less or wait"
STUCK = "this replica hangs and is being replaced; come back soon"


@dataclass(frozen=True, slots=True)
class ModelHandle:
    """One model of the engine, with its queue and its admission control.

    heavy: the budget for preparing heavy inputs.
    """

    lane: ScheduledModel
    admission: Admission
    heavy: Budget
    deadline_s: float

    def check_heavy(self, cost: int, caller: Caller) -> None:
        """Raise `TooLarge` or `Overloaded` if heavy inputs of this cost are refused now."""
        name = self.lane.model.info.name
        if cost > self.heavy.limit:
            raise TooLarge(
                f"preparing the request's large inputs would cost {cost} (a character of text counts 1, so "
                f"do {PIXELS_PER_UNIT} pixels) and {name!r} admits at most {self.heavy.limit} at a time "
                "(admission.max_heavy_cost); send fewer or smaller ones"
            )
        if not self.heavy.has_room(cost, caller):
            wait_s = max(self.admission.retry_after_s(), self.heavy.used * UNIT_S)
            raise Overloaded(
                f"{name!r} prepares as many large inputs as it admits; retry in {wait_s:.1f} s, or send "
                "smaller ones",
                wait_s,
            )

    @property
    def num_queued_items(self) -> int:
        return len(self.lane.queue)

    @property
    def num_inflight_items(self) -> int:
        return self.admission.num_items


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
        self.served = {model.info.name: _served(model, settings) for model in models}
        self._loop = asyncio.get_running_loop()
        self._preparer = Preparer()
        scheduled = [served.lane for served in self.served.values()]
        self._runner = Runner(scheduled, self._deliver, on_batch, depth=depth)
        self._is_draining = self._is_stuck = False
        self._arrived: dict[str, list[Entry]] = {}
        self._runner.start()

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
                return await self._in_time(work, deadline_at)
            except DeadlineExceeded:
                _note_wait(ticket, time.monotonic() - ticket.admitted_at, costs)
                raise

    def check_room(self, model: str, caller: Caller) -> None:
        """Raise `Overloaded` if a request of any size would be refused now."""
        self._accepting(model).admission.check(caller)

    def check(self) -> None:
        """Raise `InternalError` if the runner has died or its forward pass hangs.

        In that case all waiting requests fail with `NotReady`, and so do new requests until the pass ends.
        """
        self._is_stuck = self._runner.is_stuck
        if not self._runner.is_alive and not self._is_draining:
            self._is_stuck = True
        if not self._is_stuck:
            return
        self._runner.fail_all(NotReady(STUCK))
        if not self._runner.is_alive:
            raise InternalError("the runner's thread has ended. This is a bug.")
        raise InternalError(f"a forward pass has been running for {self._runner.stuck_s:.0f} s and hangs")

    @property
    def num_inflight_items(self) -> int:
        """The number of items, over all models, that were admitted but are not answered yet."""
        return sum(served.num_inflight_items for served in self.served.values())

    async def drain(self, timeout_s: float | None = None) -> bool:
        """Refuse new requests, answer the admitted ones and end the threads. Return False on a timeout."""
        self._is_draining = True
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
        return Classified(answer.logits, num_tokens, timings, answer.is_degraded, routing=routing)

    async def _answer(
        self,
        served: ModelHandle,
        items: Sequence[Item],
        enqueued_at: float,
        deadline_at: float,
        caller: Caller,
    ) -> Answer:
        future = RequestFuture(len(items))
        entries = [
            Entry(item, future, index, enqueued_at, deadline_at, caller) for index, item in enumerate(items)
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


def _served(model: Classifier, settings: Mapping[str, EngineSettings]) -> ModelHandle:
    name = model.info.name
    own = settings.get(name, EngineSettings())
    limits = own.admission
    admission = Admission(
        name,
        limits.max_items,
        limits.max_tokens,
        min_items=limits.min_items,
        target_wait_s=limits.target_wait_s,
    )
    budget = Budget(limits.max_heavy_cost)
    return ModelHandle(ScheduledModel(model, own.batching), admission, budget, limits.deadline_s)
