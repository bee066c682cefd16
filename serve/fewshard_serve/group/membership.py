"""Admits workers, detects lost ones, and carries out the decisions of `state_machine`. Called by `leader`.

All of it runs on one control thread. Other threads post their events to it.
"""

import logging
import os
import queue
import secrets
import socket
import threading
from collections.abc import Callable, Collection, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray

from fewshard_models.checkpoint import resolve
from fewshard_models.sharding import Placement
from fewshard_models.sharding.weights import fingerprint
from fewshard_serve.group.epoch import Blocks, Epoch
from fewshard_serve.group.handshake import Handshake, Listener, Wanted
from fewshard_serve.group.launcher import Launcher
from fewshard_serve.group.readiness import LEADER, GroupRules
from fewshard_serve.group.settings import GroupSettings
from fewshard_serve.group.shard_runtime import Prepared, ShardRuntime
from fewshard_serve.group.state_machine import GroupStateMachine
from fewshard_serve.group.transport import Frame, Link, WireError
from fewshard_serve.group.view import GroupStatus, Stage, View
from fewshard_serve.group.worker import WorkerConfig, device_id, device_name
from fewshard_serve.group.workers import Heartbeat, Peer

logger = logging.getLogger(__name__)

TICK_S = 0.1
BACKOFF_S = (1.0, 60.0)
"""Seconds that an expelled worker stays away: the first time (doubled each time), and the most."""


class Membership:
    """Carries out the `GroupActions` of a `GroupStateMachine`. `loads` is read before every decision."""

    def __init__(
        self,
        settings: GroupSettings,
        target: Placement,
        seat: ShardRuntime,
        launcher: Launcher,
        stage: Stage,
        loads: Callable[[], NDArray[np.int64]],
    ) -> None:
        self._settings = settings
        self._runtime = seat
        self._launcher = launcher
        self._stage = stage
        self._loads = loads
        num_spares = settings.spare_bytes // seat.shard.num_bytes_an_expert
        rules = GroupRules(
            settings.num_shards, settings.max_slots_per_shard, settings.allows_degraded, num_spares
        )
        self._machine = GroupStateMachine(rules, target, self)
        self._peers: dict[int, Peer] = {}
        self._backoff_s: dict[int, float] = {}
        self._posted: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self.status = self._read_status()

    def start(self, store_port: int) -> None:
        """Start to listen, and start the workers."""
        settings, secret = self._settings, secrets.token_hex(16)
        device, there = device_name(torch.device(settings.device)), fingerprint(resolve(settings.path))
        wanted = Wanted(settings.num_shards, secret, device, there, socket.gethostname())
        self._listener = Listener(settings.address, wanted, self._greet, settings.timeout_s)
        self._heartbeat = Heartbeat(lambda: list(self._peers.values()), self.remove, settings.timeout_s)
        threading.Thread(target=self._control, name="group-control", daemon=True).start()
        first = self._worker_config(1, store_port, secret)
        self._launcher.start([replace(first, shard=shard) for shard in range(1, settings.num_shards)])
        # With a single shard no worker will join and trigger the first decision.
        self.post(lambda: self._machine.joined(LEADER))

    def _worker_config(self, shard: int, store_port: int, secret: str) -> WorkerConfig:
        settings = self._settings
        return WorkerConfig(
            shard=shard,
            host=settings.address,
            port=self._listener.port,
            store_port=store_port,
            secret=secret,
            path=settings.path,
            dtype=settings.dtype,
            device=settings.device,
            timeout_s=settings.timeout_s,
            num_threads=settings.num_threads,
            leader_pid=os.getpid(),
            leader_host=socket.gethostname(),
        )

    def close(self) -> None:
        self._heartbeat.stop()
        self._listener.close()
        self._posted.put(None)
        for peer in list(self._peers.values()):
            peer.link.close()
        self._launcher.stop()

    def post(self, event: Callable[[], None]) -> None:
        """Run `event` on the control thread."""
        self._posted.put(event)

    def activated(self, generation: int) -> None:
        self.post(partial(self._machine.activated, generation))

    def failed(self, generation: int) -> None:
        self.post(partial(self._machine.failed, generation))

    def answered_wrongly(self, view: View, problem: str) -> None:
        self.post(partial(self._machine.answered_wrongly, view.epoch.generation, view.newcomers, problem))

    def retarget(self, target: Placement) -> None:
        self.post(partial(self._machine.retarget, target))

    def remove(self, peer: Peer, reason: str) -> None:
        """Remove a worker that does not answer."""
        self.post(partial(self._remove, peer, reason))

    # The `GroupActions`.

    def stage(self, shard: int, epoch: Epoch) -> None:
        if shard == LEADER:
            self._runtime.stage(epoch, self._on_own_report)
        else:
            self._peers[shard].send(Frame("stage", epoch.to_fields()))

    def connect(self, shard: int, generation: int) -> None:
        if shard == LEADER:
            self._runtime.connect(generation, self._on_own_report)
        else:
            self._peers[shard].send(Frame("connect", {"generation": generation}))

    def publish(self, epoch: Epoch, newcomers: Collection[int]) -> None:
        peers = {shard: self._peers[shard] for shard in epoch.live if shard != LEADER}
        self._stage.publish(View(epoch, newcomers, peers))

    def halt(self, generation: int) -> None:
        self._stage.halt(generation)

    def expel(self, shard: int, reason: str) -> None:
        first_s, longest_s = BACKOFF_S
        wait_s = min(2 * self._backoff_s.get(shard, first_s / 2), longest_s)
        self._backoff_s[shard] = wait_s
        logger.error("shard %d is sent away for %.0f s: %s", shard, wait_s, reason)
        peer = self._peers.pop(shard)
        _send_away(peer.link, reason, wait_s)

    def keep_spares(self, shard: int, blocks: Blocks) -> None:
        if shard == LEADER:
            self._runtime.keep_spares(blocks)
        else:
            self._peers[shard].send(Frame("spares", {"blocks": blocks}))

    def stand_by(self, shard: int, number: int, generation: int, live: Sequence[int]) -> None:
        if shard == LEADER:
            self._runtime.stand_by(number, generation, live, self._on_own_report)
        else:
            fields = {"number": number, "generation": generation, "live": live}
            self._peers[shard].send(Frame("stand_by", fields))

    # The control thread.

    def _control(self) -> None:
        while True:
            try:
                event = self._posted.get(timeout=TICK_S)
            except queue.Empty:
                event = self._launcher.tend
            if event is None:
                return
            try:
                self._machine.loads = self._loads()
                event()
                self.status = self._read_status()
                self._stage.tick()
            except Exception:  # without this thread the group could never recover
                logger.exception("an event of the group could not be handled")

    def _read_status(self) -> GroupStatus:
        machine, active = self._machine, self._machine.active
        return GroupStatus(
            num_shards=self._settings.num_shards,
            size=0 if active is None else len(active.live),
            generation=0 if active is None else active.generation,
            num_reforms=machine.tally.num_reforms,
            num_moves=machine.tally.num_moves,
            is_degraded=active is not None and not active.is_complete,
            problem=machine.problem,
            is_unrecoverable=machine.is_unrecoverable,
            placement=machine.target if active is None else active.placement,
        )

    def _welcome(self, hello: Handshake, link: Link, objection: str) -> None:
        shard = hello.shard
        if objection:
            self._machine.objected(objection)
            _send_away(link, objection, BACKOFF_S[1] / 2)
            return
        if shard in self._peers:
            self._remove(self._peers[shard], "another worker came in its place")
        peer = self._peers[shard] = Peer(hello, link)
        link.start(partial(self._on_frame, shard, peer), partial(self._on_end, shard, peer), f"shard-{shard}")
        self._machine.backend = self._backend()
        self._machine.joined(shard)

    def _backend(self) -> str:
        """Return nccl if each shard has its own GPU, which NCCL requires; else gloo."""
        ids = [device_id(torch.device(self._settings.device))]
        ids += [peer.hello.device_id for peer in self._peers.values()]
        return "nccl" if all(ids) and len(set(ids)) == len(ids) else "gloo"

    def _remove(self, peer: Peer, reason: str) -> None:
        hello = peer.hello
        if self._peers.get(hello.shard) is not peer:
            return  # it has already left
        peer.link.close()
        self._launcher.kill(hello.shard, hello.host, hello.pid)
        self._left(hello.shard, peer, reason)

    def _left(self, shard: int, peer: Peer, reason: str) -> None:
        if self._peers.get(shard) is peer:
            del self._peers[shard]
            self._interrupt(shard)
            self._machine.left(shard, reason)

    def _interrupt(self, lost: int) -> None:
        """End the step that waits for a lost shard, where no connection of the exchange tells of the loss."""
        active = self._machine.active
        if active is None or lost not in active.live or active.backend == "gloo":
            return
        self._runtime.interrupt(active.generation)
        for shard in set(active.live) & self._peers.keys():
            self._peers[shard].send(Frame("interrupt", {"generation": active.generation}))

    # Called from other threads.

    def _greet(self, hello: Handshake, link: Link, objection: str) -> None:
        self.post(partial(self._welcome, hello, link, objection))

    def _on_frame(self, shard: int, peer: Peer, frame: Frame) -> None:
        if frame.kind == "prepared":
            self.post(partial(self._machine.prepared, shard, Prepared(**frame.fields)))
        else:
            peer.replies.put(frame)

    def _on_end(self, shard: int, peer: Peer, reason: str) -> None:
        self.post(partial(self._left, shard, peer, reason))
        peer.replies.put(None)

    def _on_own_report(self, report: Prepared) -> None:
        self.post(partial(self._machine.prepared, LEADER, report))


def _send_away(link: Link, reason: str, wait_s: float) -> None:
    with suppress(WireError):  # it may have left already
        link.send(Frame("leave", {"reason": reason, "wait_s": wait_s}))
    link.close()
