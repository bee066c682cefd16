"""Prepares inputs (tokenises, decodes images); the engine calls it for every request.

What costs less than a thread needs to begin and to answer is prepared on the event loop: a few pixels always,
a short text while the server has nothing else to do. All other requests go to threads.

There, a request is prepared in slices of bounded cost. Each slice waits for its caller's turn, and does not
begin when the deadline has passed or the caller has gone. A single input may cost more than a slice; such
heavy inputs have threads of their own, so that they never hold up the light ones.
"""

import asyncio
import logging
import os
import sys
import threading
import time
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field

from fewshard_core.cpu import available_cores
from fewshard_core.values import Input, Item
from fewshard_models.classifier.base import Classifier
from fewshard_models.errors import UnusableInput
from fewshard_serve.core import ANYBODY, Caller
from fewshard_serve.engine.preparing_cost import SLICE_COST
from fewshard_serve.errors import DeadlineExceeded, InternalError, NotReady, ServeError, UnusableItem
from fewshard_serve.fairness import FairQueue

logger = logging.getLogger(__name__)

MAX_THREADS = 4
LATE = "the deadline passed while the inputs were prepared; send fewer or smaller ones, or allow more time"
CLOSED = "the server is draining; ask another replica or come back"
TINY_COST, SMALL_COST, SMALL_INPUTS = 32, 512, 4
"""The most that is prepared on the event loop: `TINY_COST` at any time, some 50 us; `SMALL_COST`, some 200
us, for a request that is alone. Under load, two threads tokenise faster than the event loop does."""
INLINE_S = 2e-3
INLINE_PAUSE = 50
"""A model that takes longer than `INLINE_S` twice in a row uses the threads for the next so many requests.
Once may happen to any: the system may give the core to another process."""
HEAVY_NICENESS = 5
"""Under this niceness a thread yields its core to the model, the event loop and light inputs."""


@dataclass(slots=True, eq=False)
class _Job:
    """One request's inputs, and the items prepared so far. `prepared` is cancelled when nobody awaits it."""

    model: Classifier
    inputs: Sequence[Input]
    costs: Sequence[int]
    truncate: bool
    caller: Caller
    deadline_at: float
    prepared: Future[list[Item]] = field(default_factory=Future)
    items: list[Item] = field(default_factory=list)

    def next_slice(self) -> tuple[int, int]:
        """The end and the cost of the slice that begins behind `items`; it holds at least one input."""
        end = len(self.items)
        cost = self.costs[end]
        end += 1
        while end < len(self.costs) and cost + self.costs[end] <= SLICE_COST:
            cost += self.costs[end]
            end += 1
        return end, max(cost, 1)


@dataclass(frozen=True, slots=True)
class _Slice:
    job: _Job
    end: int


class _Lane:
    """Threads of one kind, and the slices that wait for them. The preparer's lock is held around each use."""

    def __init__(self, name: str, num_threads: int, max_of_one_caller: int, niceness: int) -> None:
        self.pool = ThreadPoolExecutor(
            num_threads, f"fewshard-prepare-{name}", initializer=_lower_priority, initargs=(niceness,)
        )
        self.slices: FairQueue[_Slice] = FairQueue()
        self.running: Counter[Caller] = Counter()
        self.began: dict[int, tuple[float, Classifier]] = {}
        """By thread, when the slice that it runs began (monotonic seconds), and for which model."""
        self._max_of_one_caller = max_of_one_caller

    @property
    def is_busy(self) -> bool:
        """Whether a slice waits or runs. It may be read without the lock: the event loop adds the slices."""
        return bool(self.slices or self.running)

    def take(self) -> _Slice | None:
        """The next slice; None if none waits whose caller holds less than its share of the threads."""
        return self.slices.pop_if(lambda caller: self.running[caller] < self._max_of_one_caller)


class Preparer:
    """Threads that prepare inputs, fairly between callers by cost. Models do not wait for each other.

    A few threads are enough, because tokenizers and image decoders release the GIL. Light slices have as many
    threads as there are cores. Heavy inputs have others, of low priority; one caller cannot take them all.
    """

    def __init__(self, num_threads: int | None = None) -> None:
        num_threads = num_threads or min(MAX_THREADS, available_cores())
        num_heavy = max(num_threads, 2)
        self._light = _Lane("light", num_threads, num_threads, niceness=0)
        self._heavy = _Lane("heavy", num_heavy, num_heavy - 1, HEAVY_NICENESS)
        self._lock = threading.Lock()
        self._is_closed = False
        self._num_slow: Counter[str] = Counter()
        """By model, how often in a row it was slow on the event loop."""
        self._pauses: Counter[str] = Counter()
        """By model, the number of requests for which it uses the threads."""

    async def prepare(
        self,
        model: Classifier,
        inputs: Sequence[Input],
        truncate: bool,
        caller: Caller = ANYBODY,
        *,
        costs: Sequence[int] = (),
        deadline_at: float = float("inf"),
        is_alone: bool = False,
    ) -> list[Item]:
        """Return one item per input, in order.

        costs: the cost of each input, as `Classifier.costs` returns them; computed here if not given.
        deadline_at: no slice begins after this time (monotonic seconds).
        is_alone: whether the server has nothing else to do.

        If the caller is cancelled, its next slice does not begin. Raises `UnusableItem` with the first
        unusable input, `DeadlineExceeded`, `NotReady` once closed, and `InternalError` if the model fails.
        """
        job = _Job(model, inputs, costs or model.costs(inputs), truncate, caller, deadline_at)
        if self._is_inline(job, SMALL_COST if is_alone else TINY_COST):
            return self._prepare_here(job)
        self._enqueue(job)
        return await asyncio.wrap_future(job.prepared)

    @property
    def longest_s(self) -> float:
        """How long the slice has been running that began first, in seconds; below 0 if none runs."""
        return time.monotonic() - min((at for at, _ in self._began), default=float("inf"))

    def is_preparing(self, model: Classifier) -> bool:
        """Whether a slice of this model's inputs runs, even if its caller has gone."""
        return any(of is model for _, of in self._began)

    @property
    def _began(self) -> list[tuple[float, Classifier]]:
        return [*self._light.began.values(), *self._heavy.began.values()]

    def close(self) -> None:
        """Let the running slices end, refuse the others, and end the threads."""
        with self._lock:
            self._is_closed = True
        for lane in (self._light, self._heavy):
            lane.pool.shutdown(wait=True, cancel_futures=True)
            while lane.slices:
                _settle(lane.slices.pop().job.prepared, NotReady(CLOSED))

    def _is_inline(self, job: _Job, max_cost: int) -> bool:
        """Whether the request is so small that no thread is worth waking, and would overtake nobody."""
        if len(job.inputs) > SMALL_INPUTS or sum(job.costs) > max_cost:
            return False
        if self._is_closed or self._light.is_busy or self._heavy.is_busy:
            return False
        if self._pauses[job.model.info.name]:
            self._pauses[job.model.info.name] -= 1
            return False
        return True

    def _prepare_here(self, job: _Job) -> list[Item]:
        if time.monotonic() >= job.deadline_at:
            raise DeadlineExceeded(LATE)
        began_at = time.monotonic()
        try:
            return _prepare(job, 0, len(job.inputs))
        finally:
            self._judge(job.model.info.name, time.monotonic() - began_at)

    def _judge(self, model: str, spent_s: float) -> None:
        self._num_slow[model] = self._num_slow[model] + 1 if spent_s > INLINE_S else 0
        if self._num_slow[model] > 1:
            self._pauses[model] = INLINE_PAUSE

    def _enqueue(self, job: _Job) -> None:
        end, cost = job.next_slice()
        lane = self._heavy if cost > SLICE_COST else self._light
        with self._lock:
            if self._is_closed:
                _settle(job.prepared, NotReady(CLOSED))
                return
            lane.slices.push(job.caller, _Slice(job, end), cost, flow=job.model.info.name)
            lane.pool.submit(self._work, lane)

    def _work(self, lane: _Lane) -> None:
        """Prepare the slices whose turn it is, until none may run. Called once per slice at least."""
        while True:
            with self._lock:
                piece = None if self._is_closed else lane.take()
                if piece is None:
                    return
                lane.running[piece.job.caller] += 1
                lane.began[threading.get_ident()] = time.monotonic(), piece.job.model
            outcome = self._advance(piece.job, piece.end)
            with self._lock:
                del lane.began[threading.get_ident()]
                lane.running[piece.job.caller] -= 1
                lane.running += Counter()  # forget the callers that run nothing
            if outcome is not None:  # whoever is answered finds the thread free
                _settle(piece.job.prepared, outcome)
            elif not piece.job.prepared.cancelled():
                self._enqueue(piece.job)

    def _advance(self, job: _Job, end: int) -> list[Item] | Exception | None:
        """Prepare one slice. Return the request's outcome; None if another slice follows or nobody waits."""
        if job.prepared.cancelled():
            return None
        try:
            if time.monotonic() >= job.deadline_at:
                raise DeadlineExceeded(LATE)
            job.items += _prepare(job, len(job.items), end)
        except Exception as error:  # noqa: BLE001  raised again where the job is awaited
            return error
        return job.items if end == len(job.inputs) else None


def _settle(future: Future[list[Item]], outcome: list[Item] | Exception) -> None:
    if not future.set_running_or_notify_cancel():
        return  # its caller has gone
    if isinstance(outcome, Exception):
        future.set_exception(outcome)
    else:
        future.set_result(outcome)


def _prepare(job: _Job, start: int, end: int) -> list[Item]:
    model, inputs = job.model, job.inputs[start:end]
    try:
        items = model.prepare(inputs, job.truncate)
    except (UnusableInput, UnusableItem) as error:
        raise UnusableItem(start + error.index, error.reason) from error
    except ServeError:
        raise
    except Exception as error:
        logger.exception("%s: preparing %d inputs failed", model.info.name, len(inputs))
        raise InternalError(f"the model failed to prepare the inputs ({type(error).__name__})") from error
    assert len(items) == len(inputs), f"{len(items)} items from {len(inputs)} inputs. This is a bug."
    return items


def _lower_priority(niceness: int) -> None:
    """Raise the niceness of this thread alone, which Linux allows."""
    if niceness and sys.platform == "linux":
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), niceness)
