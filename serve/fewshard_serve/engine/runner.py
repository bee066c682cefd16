"""The threads that run a replica's models, batch by batch; the engine feeds and stops them."""

import logging
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from fewshard_serve.core import BatchStats
from fewshard_serve.engine.batch import BatchResult, Pacing, execute
from fewshard_serve.engine.queue import Cut, Entry, Resolution
from fewshard_serve.engine.scheduled_model import ScheduledModel
from fewshard_serve.errors import DeadlineExceeded, NotReady, ServeError

logger = logging.getLogger(__name__)
T = TypeVar("T")

EXPIRED = "the deadline passed while the item was queued; send fewer items or allow more time"


@dataclass(slots=True, eq=False)
class Scheduled:
    """One batch that a model runs, or will run next. Times are seconds on the runner's clock.

    model: the model that the batch was cut for.
    cut: the batch, and the entries that were dropped with it.
    began_at: when the batch was cut; if every stream was busy then, when one became free.
    pass_began_at: when its latest forward pass began.
    """

    model: ScheduledModel
    cut: Cut
    began_at: float
    pass_began_at: float = 0.0

    def queue_s(self, entry: Entry) -> float:
        return self.began_at - entry.enqueued_at

    @property
    def num_tokens(self) -> int:
        return sum(entry.item.num_tokens for entry in self.cut.batch)


@dataclass(frozen=True, slots=True)
class Ran:
    executed: BatchResult
    infer_s: float


class Runner:
    """Runs as many batches at a time as the models have streams, usually one; the model whose oldest entry
    has waited longest first.

    With a `depth` above that, another batch is handed over while they run, as soon as waiting would not make
    it larger. This suits models in a process of their own, which begin batches in the order of the calls.

    `on_batch` and `deliver` are called from a runner thread, one call at a time. `on_batch` comes first, so
    that a client that has its answer finds the batch in the metrics.
    """

    def __init__(
        self,
        models: Sequence[ScheduledModel],
        deliver: Callable[[list[Resolution]], None],
        on_batch: Callable[[BatchStats], None],
        clock: Callable[[], float] = time.monotonic,
        depth: int = 1,
    ) -> None:
        self._models = list(models)
        self._deliver = deliver
        self._on_batch = on_batch
        self._clock = clock
        self._changed = threading.Condition()
        self._resolving = threading.Lock()
        self._is_stopping = False
        self._running: list[Scheduled] = []
        """As many as there are streams run; those behind them wait in the process of the models."""
        self._num_streams = max((model.num_streams for model in self._models), default=1)
        self._threads = [
            threading.Thread(target=self._main, name=f"fewshard-runner-{number}", daemon=True)
            for number in range(depth)
        ]

    def start(self) -> None:
        for thread in self._threads:
            thread.start()

    def submit(self, model: ScheduledModel, entries: Sequence[Entry]) -> None:
        """Queue the entries. Raises `NotReady` once the runner is stopping. Any thread may call it."""
        with self._changed:
            if self._is_stopping:
                raise NotReady("the server is draining; ask another replica or come back")
            model.queue.extend(entries)
            if self._may_cut(model):
                self._changed.notify()

    def stop(self, timeout_s: float | None = None) -> bool:
        """Refuse new entries, finish the queued ones and end the threads. Return False on a timeout."""
        with self._changed:
            self._is_stopping = True
            self._changed.notify_all()
        give_up_at = None if timeout_s is None else self._clock() + timeout_s
        for thread in self._threads:
            thread.join(None if give_up_at is None else max(0.0, give_up_at - self._clock()))
        return not any(thread.is_alive() for thread in self._threads)

    @property
    def is_alive(self) -> bool:
        return all(thread.is_alive() for thread in self._threads)

    def is_running(self, model: ScheduledModel) -> bool:
        """Whether a batch of this model runs, even if all its callers have gone."""
        return any(one.model is model for one in list(self._running))

    @property
    def stuck_s(self) -> float:
        """Seconds since the oldest forward pass that runs began; 0.0 when none runs."""
        began_at = [one.pass_began_at for one in self._running[: self._num_streams]]
        return self._clock() - min(began_at) if began_at else 0.0

    @property
    def is_stuck(self) -> bool:
        """True if a forward pass has exceeded the time allowed for the largest that are under way."""
        allowed_s = [one.model.pace.allowed_s(one.num_tokens) for one in list(self._running)]
        return bool(allowed_s) and self.stuck_s > max(allowed_s)

    def fail_all(self, error: ServeError) -> None:
        """Fail all queued and running entries with this error. Any thread may call it."""
        with self._changed:
            waiting = [Scheduled(model, model.queue.take_all(), self._clock()) for model in self._models]
            running = list(self._running)
        resolutions = [
            Resolution(entry, error, scheduled.queue_s(entry), 0.0)
            for scheduled in [*running, *waiting]
            for entry in scheduled.cut.batch
        ]
        _guarded("deliver", self._deliver, resolutions)

    def _main(self) -> None:
        while (scheduled := self._schedule()) is not None:
            ran = self._run(scheduled)
            self._resolve(scheduled, ran)

    def _schedule(self) -> Scheduled | None:
        """Wait for the next batch. Return None when the runner is stopping and nothing is queued."""
        with self._changed:
            while True:
                waiting = [model for model in self._models if model.queue]
                if self._is_stopping and not waiting:
                    return None
                now = self._clock()
                ripe = [model for model in waiting if self._is_stopping or model.ready_at <= now]
                model = min(ripe, key=lambda model: model.queue.head_enqueued_at, default=None)
                if model is not None and self._may_cut(model):
                    return self._cut(model, now)
                ripens_at = [] if ripe else [model.ready_at for model in waiting]
                self._changed.wait(min(ripens_at) - now if ripens_at else None)

    def _may_cut(self, model: ScheduledModel) -> bool:
        """Whether its next batch could begin at once, or would not become larger by waiting."""
        return len(self._running) < model.num_streams or model.can_prefetch

    def _cut(self, model: ScheduledModel, now: float) -> Scheduled:
        scheduled = Scheduled(model, model.cut(now), now, now)
        if scheduled.cut.batch:
            self._running.append(scheduled)
        return scheduled

    def _run(self, scheduled: Scheduled) -> Ran:
        if not scheduled.cut.batch:
            return Ran(BatchResult([]), 0.0)
        model, num_tokens = scheduled.model, scheduled.num_tokens
        items = [entry.item for entry in scheduled.cut.batch]

        def note_pass() -> None:
            scheduled.pass_began_at = self._clock()

        give_up_at = max(entry.deadline_at for entry in scheduled.cut.batch)
        executed = execute(model.model, items, Pacing(note_pass, give_up_at, self._clock))
        ended_at = self._end(scheduled)
        if executed.has_run:
            # The last pass alone, not `infer_s`: exclude failed passes and process restarts.
            model.pace.observe(num_tokens, ended_at - scheduled.pass_began_at)
        if executed.was_out_of_memory:
            model.lower_budget(num_tokens, len(items))
        return Ran(executed, ended_at - scheduled.began_at)

    def _end(self, scheduled: Scheduled) -> float:
        """Mark the batch as ended and return the time. The next one runs now; another may be cut."""
        with self._changed:
            now = self._clock()
            waiting = self._running[self._num_streams :]
            self._running.remove(scheduled)
            for first in waiting[:1]:
                if first is not scheduled:
                    first.began_at = first.pass_began_at = now
            if any(model.queue for model in self._models):
                self._changed.notify()
        return now

    def _resolve(self, scheduled: Scheduled, ran: Ran) -> None:
        with self._resolving:
            if ran.executed.has_run and (stats := _stats(scheduled, ran)):
                _guarded("on_batch", self._on_batch, stats)
            if resolutions := _resolutions(scheduled, ran):
                _guarded("deliver", self._deliver, resolutions)


def _resolutions(scheduled: Scheduled, ran: Ran) -> list[Resolution]:
    of_batch = ran.executed.is_degraded, ran.executed.exchange_s
    answered = [
        Resolution(entry, outcome, scheduled.queue_s(entry), ran.infer_s, *of_batch)
        for entry, outcome in zip(scheduled.cut.batch, ran.executed.outcomes, strict=True)
    ]
    expired = [
        Resolution(entry, DeadlineExceeded(EXPIRED), scheduled.queue_s(entry), 0.0)
        for entry in scheduled.cut.expired
    ]
    return answered + expired


def _stats(scheduled: Scheduled, ran: Ran) -> BatchStats | None:
    batch = [entry for entry in scheduled.cut.batch if not entry.is_probe]
    if not batch:
        return None
    return BatchStats(
        model=scheduled.model.model.info.name,
        num_items=len(batch),
        num_tokens=sum(entry.item.num_tokens for entry in batch),
        num_padding_tokens=ran.executed.num_padding_tokens,
        infer_s=ran.infer_s,
        queue_s=tuple(scheduled.queue_s(entry) for entry in batch),
    )


def _guarded(name: str, callback: Callable[[T], None], value: T) -> None:
    try:
        callback(value)
    except Exception:  # a failing observer or a closed loop must not end the thread
        logger.exception("the runner's %s callback failed", name)
