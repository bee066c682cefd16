"""The threads of a host that run its models; fed and stopped by the engine."""

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
"""A batch of so few is taken whole: on a CPU smaller ones cost more an item."""

EXPIRED = "the deadline passed while the item was queued; send fewer items or allow more time"


def _pace_of(model: Classifier) -> PassTimeout:
    # A group that has lost a shard forms anew within a pass, which takes as long as loading.
    is_grouped = isinstance(model, Grouped) and model.group() is not None
    return PassTimeout(min_s=MAX_ALLOWED_S if is_grouped else MIN_ALLOWED_S)


@dataclass(slots=True)
class ScheduledModel:
    """One model with its queue. `max_tokens` and `max_items` of a batch fall where memory runs out."""

    model: Classifier
    settings: BatchingSettings
    max_tokens: int = field(init=False)
    max_items: int = field(init=False)
    queue: Queue = field(default_factory=Queue)
    pace: PassTimeout = field(init=False)
    _last_size: int = field(default=0, init=False)

    def __post_init__(self) -> None:
        self.max_tokens = self.settings.max_tokens_on(self.model.info.device)
        self.max_items = self.settings.max_items
        self.pace = _pace_of(self.model)

    @property
    def is_full(self) -> bool:
        """A batch cut now could not be larger."""
        enough_tokens = self.queue.num_tokens >= self.max_tokens
        return enough_tokens or len(self.queue) >= self.max_items

    @property
    def ready_at(self) -> float:
        """The time from which a batch may be cut; the queue must not be empty."""
        waits = 0.0 if self.is_full else self.settings.max_wait_s
        return self.queue.head_enqueued_at + waits

    @property
    def can_prefetch(self) -> bool:
        """Enough waits to cut a batch although another one runs: waiting longer would not make it larger."""
        return self.is_full or len(self.queue) >= max(UNSPLIT_ITEMS, self._last_size)

    def cut(self, now: float) -> Cut:
        """What runs next: at most the mean of what waits and what ran last.

        Clients who wait for their answers would otherwise all end in one batch, and then nothing runs while
        they are answered and nobody is answered while it runs. So they fall into two halves that take turns.
        """
        share = max(UNSPLIT_ITEMS, (len(self.queue) + self._last_size + 1) // 2)
        cut = self.queue.cut(self.max_tokens, min(self.max_items, share), now)
        self._last_size = len(cut.batch)
        return cut

    def lower_budget(self, num_tokens: int, num_items: int) -> None:
        """Batches of this size have no room in memory: from now on they are half as large at the most."""
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
    """A cut of one lane on its way through the model. `began_at`: when it was taken or, where another batch
    ran then, when that one ended; `pass_began_at`: the same of the latest pass, where it took several."""

    lane: ScheduledModel
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
    """Serves the lanes one batch at a time, the lane with the oldest head first.

    With a `depth` of 2 a second batch is handed to the models while one runs, as soon as it is as large as it
    would become: for models in a process of their own, which do one after the other. `on_batch` and `deliver`
    are called from a thread of the runner, one call at a time, `on_batch` first, so that whoever has an
    answer finds its batch counted.
    """

    def __init__(
        self,
        lanes: Sequence[ScheduledModel],
        deliver: Callable[[list[Resolution]], None],
        on_batch: Callable[[BatchStats], None],
        clock: Callable[[], float] = time.monotonic,
        depth: int = 1,
    ) -> None:
        self._lanes = list(lanes)
        self._deliver = deliver
        self._on_batch = on_batch
        self._clock = clock
        self._changed = threading.Condition()
        self._resolving = threading.Lock()
        self._is_stopping = False
        self._running: list[Scheduled] = []
        self._progress_at = clock()
        self._threads = [
            threading.Thread(target=self._main, name=f"fewshard-runner-{number}", daemon=True)
            for number in range(depth)
        ]

    def start(self) -> None:
        for thread in self._threads:
            thread.start()

    def submit(self, lane: ScheduledModel, entries: Sequence[Entry]) -> None:
        """Queue the entries; raises `NotReady` once the runner is stopping. Safe from any thread."""
        with self._changed:
            if self._is_stopping:
                raise NotReady("the server is draining; ask another replica or come back")
            lane.queue.extend(entries)
            if lane.can_prefetch or not self._running:
                self._changed.notify()

    def stop(self, timeout_s: float | None = None) -> bool:
        """Refuse new entries, finish those queued, end the threads; False if they have not ended in time."""
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
        """For how long no forward pass has begun or ended; 0.0 when none runs."""
        return self._clock() - self._progress_at if self._running else 0.0

    @property
    def is_stuck(self) -> bool:
        """Whether the present forward pass takes so long that it will hardly end."""
        allowed_s = [one.lane.pace.allowed_s(one.num_tokens) for one in list(self._running)]
        return bool(allowed_s) and self.stuck_s > max(allowed_s)

    def fail_all(self, error: ServeError) -> None:
        """Give this answer to all who wait, those of the present pass included. Safe from any thread."""
        with self._changed:
            waiting = [Scheduled(lane, lane.queue.take_all(), self._clock()) for lane in self._lanes]
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
        """Wait for the next cut; None when the runner is stopping and nothing is left."""
        with self._changed:
            while True:
                waiting = [lane for lane in self._lanes if lane.queue]
                if self._is_stopping and not waiting:
                    return None
                now = self._clock()
                ripe = [lane for lane in waiting if self._is_stopping or lane.ready_at <= now]
                lane = min(ripe, key=lambda lane: lane.queue.head_enqueued_at, default=None)
                if lane is not None and (lane.can_prefetch or not self._running):
                    return self._cut(lane, now)
                ripens_at = [] if ripe else [lane.ready_at for lane in waiting]
                self._changed.wait(min(ripens_at) - now if ripens_at else None)

    def _cut(self, lane: ScheduledModel, now: float) -> Scheduled:
        scheduled = Scheduled(lane, lane.cut(now), now)
        if scheduled.cut.batch:
            if not self._running:
                self._progress_at = now  # what went before was idleness
            self._running.append(scheduled)
        return scheduled

    def _run(self, scheduled: Scheduled) -> Ran:
        if not scheduled.cut.batch:
            return Ran(BatchResult([]), 0.0)
        lane, num_tokens = scheduled.lane, scheduled.num_tokens
        items = [entry.item for entry in scheduled.cut.batch]

        def note_pass() -> None:
            scheduled.pass_began_at = self._progress_at = self._clock()

        executed = execute(lane.model, items, note_pass)
        ended_at = self._end(scheduled)
        # Not all of `infer_s`: passes that failed, and a process started anew, are no measure of a pass.
        lane.pace.observe(num_tokens, ended_at - scheduled.pass_began_at)
        if executed.was_out_of_memory:
            lane.lower_budget(num_tokens, len(items))
        return Ran(executed, ended_at - scheduled.began_at)

    def _end(self, scheduled: Scheduled) -> float:
        """When the batch ended; from then on the one behind it runs, and another may be cut."""
        with self._changed:
            now = self._progress_at = self._clock()
            place = self._running.index(scheduled)
            for behind in self._running[place + 1 :]:
                behind.began_at = behind.pass_began_at = now
            del self._running[place]
            if any(lane.queue for lane in self._lanes):
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
        model=scheduled.lane.model.info.name,
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
