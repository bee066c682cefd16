"""The leader of a group: shard 0. It distributes the batches, drives every step, and computes its own part.

The engine's runner calls `run`. `membership` publishes epochs from its own thread; the leader adopts each one
between two batches.
"""

import logging
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray

from fewshard_core.errors import FewshardError
from fewshard_core.values import TokenIds
from fewshard_models.checkpoint import resolve
from fewshard_models.devices import storage_dtype
from fewshard_models.errors import ExchangeError, ModelsError
from fewshard_models.sharding import Placement
from fewshard_models.sharding.exchange import serve_store
from fewshard_models.sharding.shard import Shard
from fewshard_serve.errors import InternalError, NotReady
from fewshard_serve.group.epoch import has_same_experts
from fewshard_serve.group.expert_placement import Rebalancing
from fewshard_serve.group.launcher import Launcher
from fewshard_serve.group.membership import Membership
from fewshard_serve.group.partition import Part, PartResult, StepOutput, deal, joined
from fewshard_serve.group.readiness import LEADER
from fewshard_serve.group.settings import GroupSettings
from fewshard_serve.group.shard_runtime import ShardRuntime
from fewshard_serve.group.transport import Frame
from fewshard_serve.group.view import GroupStatus, View
from fewshard_serve.group.workers import Peer
from fewshard_serve.placement.policy import Rebalancer, RebalanceSettings

logger = logging.getLogger(__name__)

MAX_TRIES = 5
"""Tries of one batch. If all fail while the shards live, the batch or the time-out is at fault."""
MAX_WAIT_S = 50.0
"""Seconds a batch waits for an epoch. The engine treats a pass as stuck after 60 s."""

SAY_S = 30.0
"""Seconds between log lines that name the shards an incomplete group waits for."""

Run = Callable[[Sequence[TokenIds]], NDArray[np.float32]]
Check = Callable[[Run], str]
"""Runs known inputs through an epoch. Returns what is wrong with the answers, or ""."""


class StepFailed(FewshardError):
    """A step failed.

    is_exchange: a shard died or hung; otherwise the model failed on the batch.
    """

    def __init__(self, problem: str, is_exchange: bool) -> None:
        super().__init__(problem)
        self.is_exchange = is_exchange


class Group:
    """A model over several shards. One thread calls `run`; other methods may be called from any thread."""

    def __init__(self, settings: GroupSettings, target: Placement, launcher: Launcher, check: Check) -> None:
        self._settings = settings
        self._check = check
        self._changed = threading.Condition()
        self._pending: View | None = None
        self._view: View | None = None
        self._halted_at: float | None = None
        self._stepping = threading.Lock()
        self._num_steps = 0
        self._loads = np.zeros((target.num_layers, target.num_experts), np.int64)
        try:
            shard = Shard(
                resolve(settings.path), storage_dtype(settings.dtype), torch.device(settings.device)
            )
        except ModelsError as error:
            raise NotReady(str(error)) from error
        self._store = serve_store(settings.address)
        self._runtime = ShardRuntime(
            LEADER, shard, settings.address, self._store.port, settings.address, settings.timeout_s
        )
        self._membership = Membership(settings, target, self._runtime, launcher, self, lambda: self._loads)
        self._rebalancing = self._watch_loads() if settings.rebalance_s else None

    def open(self) -> None:
        """Wait until all shards have joined and answer the known inputs correctly.

        Raises NotReady if that can never happen.
        """
        self._membership.start(self._store.port)
        with self._changed:
            while not self._is_decided():
                if not self._changed.wait_for(self._is_decided, SAY_S):
                    logger.warning("%s shards: %s", self._settings.num_shards, self.status.problem)
        if self.status.is_unrecoverable:
            problem = self.status.problem
            self.close()
            raise NotReady(problem)
        if self._rebalancing is not None:
            self._rebalancing.start(self._settings.rebalance_s)

    def _is_decided(self) -> bool:
        return self.status.size > 0 or self.status.is_unrecoverable

    def close(self) -> None:
        if self._rebalancing is not None:
            self._rebalancing.stop()
        self._membership.close()
        self._runtime.close()

    @property
    def status(self) -> GroupStatus:
        return self._membership.status

    @property
    def shape(self) -> tuple[int, int, int]:
        """The numbers of expert layers, of shards, and of experts in a layer."""
        layers, experts = self._loads.shape
        return layers, self._settings.num_shards, experts

    @property
    def max_slots(self) -> int:
        return self._settings.max_slots_per_shard

    @property
    def num_bytes_an_expert(self) -> int:
        return self._runtime.shard.num_bytes_an_expert

    def retarget(self, target: Placement) -> None:
        """Change the placement. The weights are loaded beside the running ones, then swapped between two
        batches."""
        self._membership.retarget(target)

    def place(self, target: Placement, timeout_s: float) -> bool:
        """Call `retarget` and wait until it takes effect. Return False on time-out, for example if shards are
        missing."""
        self.retarget(target)
        with self._changed:
            return self._changed.wait_for(lambda: has_same_experts(self.status.placement, target), timeout_s)

    def run(self, items: Sequence[TokenIds]) -> StepOutput:
        """Run one batch. If a shard dies meanwhile, the remaining shards run it again.

        Raises NotReady if no epoch can run it, and InternalError if the model fails on it.
        """
        with self._stepping:
            for _ in range(MAX_TRIES):
                view = self._wait_for_view()
                try:
                    return self._step(view, items)
                except StepFailed as error:
                    self._give_up(view, error)
                    if not error.is_exchange:
                        raise InternalError(f"the model failed on this batch: {error}") from error
        raise InternalError(
            f"no exchange of this batch ended within {self._settings.timeout_s:g} s, though the shards live; "
            "allow more with experts.exchange_timeout_ms, or less with batching.max_tokens"
        )

    def _watch_loads(self) -> Rebalancing:
        every_s = self._settings.rebalance_s
        settings = RebalanceSettings(min_interval_s=every_s, min_observed_s=every_s / 2)
        return Rebalancing(Rebalancer(settings), lambda: self._loads, lambda: self.status, self.place)

    # Called by `membership` from its thread.

    def publish(self, view: View) -> None:
        with self._changed:
            self._pending = view
            self._changed.notify_all()

    def halt(self, generation: int) -> None:
        with self._changed:
            if self._view is not None and self._view.epoch.generation == generation:
                self._halt()

    def tick(self) -> None:
        """Adopt a published epoch if no batch is running; otherwise the next batch does."""
        if self._pending is not None and self._stepping.acquire(blocking=False):
            try:
                self._adopt()
            finally:
                self._stepping.release()
        with self._changed:
            self._changed.notify_all()

    def _halt(self) -> None:
        self._view, self._halted_at = None, self._halted_at or time.monotonic()

    # The methods below require `_stepping`.

    def _wait_for_view(self) -> View:
        give_up_at = time.monotonic() + MAX_WAIT_S
        while True:
            self._adopt()
            with self._changed:
                if self._view is not None:
                    return self._view
                if self.status.problem or time.monotonic() > give_up_at:
                    raise NotReady(self.status.problem or "the group is being formed again; come back soon")
                if self._pending is None:
                    self._changed.wait(give_up_at - time.monotonic())

    def _adopt(self) -> None:
        with self._changed:
            view, self._pending = self._pending, None
        if view is None or not self._is_sound(view):
            return
        with self._changed:
            self._view, halted_at, self._halted_at = view, self._halted_at, None
            self._changed.notify_all()
        if halted_at is not None:
            told = list(view.epoch.live), time.monotonic() - halted_at
            logger.warning("shards %s go on after a halt of %.3f s", *told)
        generation = view.epoch.generation
        self._runtime.keep(generation)
        for peer in view.peers.values():
            peer.send(Frame("keep", {"generation": generation}))
        self._membership.activated(generation)

    def _is_sound(self, view: View) -> bool:
        """Return whether an epoch with newcomers answers the known inputs correctly."""
        if not view.newcomers:
            return True
        try:
            problem = self._check(lambda items: self._step(view, items).logits)
        except StepFailed as error:
            if error.is_exchange:
                self._give_up(view, error)
                return False
            problem = f"the model fails on its known inputs: {error}"
        if problem:
            self._membership.answered_wrongly(view, problem)
        return not problem

    def _give_up(self, view: View, error: StepFailed) -> None:
        logger.warning("generation %d has failed: %s", view.epoch.generation, error)
        with self._changed:
            if self._view is view:
                self._halt()
        self._membership.failed(view.epoch.generation)

    def _step(self, view: View, items: Sequence[TokenIds]) -> StepOutput:
        started_at = time.monotonic()
        self._num_steps += 1
        hands = deal([len(item.ids) for item in items], len(view.epoch.live))
        parts = self._parts(view, hands, items)
        peers = list(view.peers.values())
        reached = [peer for peer, part in zip(peers, parts[1:], strict=True) if peer.send(part.to_frame())]
        if len(reached) < len(peers):
            self._runtime.abandon(view.epoch.generation)
            self._settle(reached)
            raise StepFailed("a shard takes no more batches", is_exchange=True)
        results = [self._run_own(parts[0], peers), *self._collect(peers)]
        out = joined(view.epoch, self._settings.num_shards, hands, results)
        self._loads = self._loads + out.tokens
        return replace(out, overhead_s=time.monotonic() - started_at - max(each.seconds for each in results))

    def _parts(self, view: View, hands: list[list[int]], items: Sequence[TokenIds]) -> list[Part]:
        num_rows = max(sum(len(items[index].ids) for index in hand) for hand in hands)
        generation = view.epoch.generation
        return [
            Part.of(self._num_steps, generation, num_rows, [items[index] for index in hand]) for hand in hands
        ]

    def _run_own(self, part: Part, peers: Sequence[Peer]) -> PartResult:
        started_at = time.monotonic()
        try:
            out = self._runtime.run(part.generation, part.packed(self._runtime.shard.device), part.num_rows)
            return PartResult.of(out, time.monotonic() - started_at)
        except Exception as error:
            verdicts = [frame for frame in self._settle(peers) if not frame.fields.get("is_exchange", True)]
            if verdicts:
                raise StepFailed(verdicts[0].fields["problem"], is_exchange=False) from error
            raise StepFailed(repr(error), isinstance(error, ExchangeError)) from error

    def _collect(self, peers: Sequence[Peer]) -> list[PartResult]:
        frames = self._settle(peers)
        failed = [frame.fields for frame in frames if frame.kind == "failed"]
        if failed:
            raise StepFailed(failed[0]["problem"], failed[0]["is_exchange"])
        if len(frames) < len(peers):
            raise StepFailed("a shard is gone", is_exchange=True)
        return [PartResult.from_frame(frame) for frame in frames]

    def _settle(self, peers: Sequence[Peer]) -> list[Frame]:
        """Return every worker's answer to this step. Workers that do not answer in time are removed."""
        until = time.monotonic() + self._settings.timeout_s
        answers = [(peer, peer.reply_to(self._num_steps, until)) for peer in peers]
        for peer, answer in answers:
            if answer is None:
                self._membership.remove(peer, "no answer to a batch")
        return [answer for _, answer in answers if answer is not None]
