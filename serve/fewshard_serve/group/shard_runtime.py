"""Runs one shard, in leader and workers. It prepares the next epoch while the current one runs steps."""

import logging
import os
import sys
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from fewshard_models.errors import ExchangeError, ModelsError, NoRoomError
from fewshard_models.sharding.exchange import Exchange, Rendezvous, join_store, meet
from fewshard_models.sharding.shard import LayerExperts, Shard, ShardOutput
from fewshard_models.text import PackedTokens
from fewshard_serve.group.epoch import Blocks, Epoch

logger = logging.getLogger(__name__)

LOWEST_PRIORITY = 19
"""Loading spares beside batches must not slow them down."""

Report = Callable[["Prepared"], None]


@dataclass(frozen=True, slots=True)
class Prepared:
    """Report of a shard that has finished one phase of a generation.

    phase: "stage" or "connect"; or "stand_by", and `generation` is the standby's number.
    problem: why it failed; "" if it succeeded.
    lacks_room: it failed for lack of memory.
    """

    phase: str
    generation: int
    problem: str = ""
    lacks_room: bool = False


@dataclass(slots=True, eq=False)
class _Prepared:
    epoch: Epoch
    staged: tuple[LayerExperts, ...]
    exchange: Exchange | None = None


class ShardRuntime:
    """One shard of a group.

    `number` is the shard's number. Shards meet at the store on `store_host`; the others reach this one at
    `address`. One thread calls `run` and `keep`. Epochs are prepared in threads of their own.
    """

    def __init__(
        self, number: int, shard: Shard, store_host: str, store_port: int, address: str, timeout_s: float
    ) -> None:
        self.number = number
        self.shard = shard
        self._store = (store_host, store_port)
        self._address = address
        self._timeout_s = timeout_s
        self._prepared: dict[int, _Prepared] = {}
        self._standbys: dict[int, tuple[int, Exchange]] = {}
        self._sparing = threading.Lock()
        self._generation = 0

    def stage(self, epoch: Epoch, report: Report) -> None:
        """Load the experts of an epoch in a thread. Discard older epochs that never ran."""
        self._forget(lambda generation: self._generation < generation < epoch.generation)

        def load() -> None:
            rank = epoch.live.index(self.number)
            is_loss = len(epoch.live) < epoch.placement.num_shards
            staged = self.shard.stage(epoch.experts()[rank], at_once=is_loss)
            self._prepared[epoch.generation] = _Prepared(epoch, staged)

        self._in_thread("stage", epoch.generation, load, report)

    def connect(self, generation: int, report: Report) -> None:
        """Connect to the other shards of a staged generation, in a thread."""

        def join() -> None:
            prepared = self._prepared[generation]
            epoch = prepared.epoch
            if epoch.standby:
                prepared.exchange = self._standbys.pop(epoch.standby)[1]
            else:
                prepared.exchange = self._meet(f"generation-{generation}", epoch.live, epoch.backend)

        self._in_thread("connect", generation, join, report)

    def stand_by(self, number: int, generation: int, live: Sequence[int], report: Report) -> None:
        """Connect to other shards in a thread, for the epoch that may follow `generation`.

        number: its own, by which `connect` and the report name it.
        """

        def join() -> None:
            self._standbys[number] = generation, self._meet(f"standby-{number}", live, "gloo")

        self._in_thread("stand_by", number, join, report)

    def keep_spares(self, blocks: Blocks) -> None:
        """Load copies of other shards' experts in a thread, for an epoch that may come."""

        def load() -> None:
            _give_way()
            try:
                with self._sparing:
                    self.shard.keep_spares(blocks)
            except ModelsError as error:
                logger.warning("shard %d has fewer spare experts than it might: %s", self.number, error)

        threading.Thread(target=load, name="spares", daemon=True).start()

    def _meet(self, name: str, live: Sequence[int], backend: str) -> Exchange:
        meeting = Rendezvous(
            name, live.index(self.number), len(live), self._address, self._timeout_s, backend
        )
        return meet(join_store(*self._store, self._timeout_s), meeting)

    def run(self, generation: int, packed: PackedTokens, num_rows: int) -> ShardOutput:
        """Run one step of a connected generation. Raises ExchangeError, or any error of the model.

        After an error the generation cannot be used again. This shard leaves it, which ends the others'
        waiting.
        """
        prepared = self._prepared.get(generation)
        if prepared is None or prepared.exchange is None:
            raise ExchangeError(f"generation {generation} is not connected here")
        if generation != self._generation:
            self.shard.activate(prepared.staged, prepared.epoch.experts(), prepared.exchange)
            self._generation = generation
        try:
            return self.shard.run(packed, num_rows)
        except BaseException:
            self.abandon(generation)
            raise

    def abandon(self, generation: int) -> None:
        """Leave a generation, so that the other shards stop waiting for this one."""
        prepared = self._prepared.get(generation)
        if prepared is not None and prepared.exchange is not None:
            prepared.exchange.abort()

    def interrupt(self, generation: int) -> None:
        """End a step of this generation that waits for a shard which is gone. Any thread may call it."""
        prepared = self._prepared.get(generation)
        if prepared is not None and prepared.exchange is not None:
            prepared.exchange.interrupt()

    def keep(self, generation: int) -> None:
        """Discard all generations before `generation`, and what stood by for them."""
        self._forget(lambda other: other < generation)

    def close(self) -> None:
        """Leave all generations."""
        self._forget(lambda generation: True)

    def _forget(self, which: Callable[[int], bool]) -> None:
        for generation in [generation for generation in list(self._prepared) if which(generation)]:
            exchange = self._prepared.pop(generation).exchange
            if exchange is not None:
                exchange.abort()
        for number in [number for number, (after, _) in list(self._standbys.items()) if which(after)]:
            standby = self._standbys.pop(number, None)  # `connect` may have taken it meanwhile
            if standby is not None:
                standby[1].abort()

    def _in_thread(self, phase: str, generation: int, work: Callable[[], None], report: Report) -> None:
        def main() -> None:
            try:
                work()
            except NoRoomError as error:
                report(Prepared(phase, generation, str(error), lacks_room=True))
            except (ModelsError, KeyError) as error:  # KeyError: the generation was discarded meanwhile
                report(Prepared(phase, generation, str(error)))
            else:
                report(Prepared(phase, generation))

        threading.Thread(target=main, name=f"{phase}-{generation}", daemon=True).start()


def _give_way() -> None:
    """Let all other threads of the machine go first. Linux has a priority for each thread."""
    if sys.platform == "linux":
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), LOWEST_PRIORITY)
