"""The threads that run a replica's models, batch by batch; the engine feeds and stops them."""

import logging
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

from fewshard_models.classifier.base import Classifier
from fewshard_serve.capabilities import Grouped
from fewshard_serve.core import BatchStats
from fewshard_serve.engine.batch import MAX_ALLOWED_S, MIN_ALLOWED_S, BatchResult, PassTimeout, execute
from fewshard_serve.engine.queue import Cut, Entry, Queue, Resolution
from fewshard_serve.engine.settings import BatchingSettings
from fewshard_serve.errors import DeadlineExceeded, NotReady, ServeError

logger = logging.getLogger(__name__)
T = TypeVar("T")

UNSPLIT_ITEMS = 16
"""Batches up to this size are not split: on a CPU, smaller batches cost more per item."""

EXPIRED = "the deadline passed while the item was queued; send fewer items or allow more time"


def _pace_of(model: Classifier) -> PassTimeout:
    # A group that loses a shard re-forms within the pass, which takes as long as loading the model.
    is_grouped = isinstance(model, Grouped) and model.group() is not None
    return PassTimeout(min_s=MAX_ALLOWED_S if is_grouped else MIN_ALLOWED_S)


@dataclass(slots=True)
class ScheduledModel:
    """One model with its queue.

    max_tokens, max_items: the largest batch now; halved each time the device runs out of memory.
    pace: learns how long a forward pass of this model may take.
    num_streams: how many of its batches run at the same time.
    """

    model: Classifier
    settings: BatchingSettings
    max_tokens: int = field(init=False)
    max_items: int = field(init=False)
    queue: Queue = field(default_factory=Queue)
    pace: PassTimeout = field(init=False)
    num_streams: int = field(init=False)
    _last_size: int = field(default=0, init=False)

    def __post_init__(self) -> None:
        self.max_tokens = self.settings.max_tokens_of(self.model.info)
        self.max_items = self.settings.max_items
        self.pace = _pace_of(self.model)
        self.num_streams = self.model.info.execution.num_streams

    @property
    def is_full(self) -> bool:
        """True if waiting longer could not make the next batch larger."""
        enough_tokens = self.queue.num_tokens >= self.max_tokens
        return enough_tokens or len(self.queue) >= self.max_items

    @property
    def ready_at(self) -> float:
        """The time from which a batch may be cut; the queue must not be empty."""
        waits = 0.0 if self.is_full else self.settings.max_wait_s
        return self.queue.head_enqueued_at + waits

    @property
    def can_prefetch(self) -> bool:
        """True if enough items wait to cut a batch while another one runs."""
        return self.is_full or len(self.queue) >= max(UNSPLIT_ITEMS, self._last_size)

    def cut(self, now: float) -> Cut:
        """Take the next batch: at most the mean of the queue's length and the last batch's size.

        Without this limit, closed-loop clients synchronise into a single batch, and computing and replying
        never overlap. Halving the batch keeps two groups alternating.
        """
        share = max(UNSPLIT_ITEMS, (len(self.queue) + self._last_size + 1) // 2)
        cut = self.queue.cut(self.max_tokens, min(self.max_items, share), now)
        self._last_size = len(cut.batch)
        return cut

    def lower_budget(self, num_tokens: int, num_items: int) -> None:
        """A batch of this size ran out of memory: limit later batches to half of it."""
        self.max_tokens = max(1, min(self.max_tokens, num_tokens // 2))
        self.max_items = max(1, min(self.max_items, num_items // 2))
        logger.warning(
            "%s: out of memory; batches now hold %d tokens and %d items at the most",
            self.model.info.name,
            self.max_tokens,
            self.max_items,
        )


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

        executed = execute(model.model, items, note_pass)
        ended_at = self._end(scheduled)
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
            if scheduled.cut.batch:
                _guarded("on_batch", self._on_batch, _stats(scheduled, ran))
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


def _stats(scheduled: Scheduled, ran: Ran) -> BatchStats:
    batch = scheduled.cut.batch
    return BatchStats(
        model=scheduled.model.model.info.name,
        num_items=len(batch),
        num_tokens=scheduled.num_tokens,
        num_padding_tokens=ran.executed.num_padding_tokens,
        infer_s=ran.infer_s,
        queue_s=tuple(scheduled.queue_s(entry) for entry in batch),
    )


def _guarded(name: str, callback: Callable[[T], None], value: T) -> None:
    try:
        callback(value)
    except Exception:  # a failing observer or a closed loop must not end the thread
        logger.exception("the runner's %s callback failed", name)
