"""A shard's seat in its group, in leader and workers: prepares formations beside what runs, runs steps."""

import threading
from collections.abc import Callable
from dataclasses import dataclass

from fewshard_models.errors import ExchangeError, ModelsError, NoRoomError
from fewshard_models.sharding.exchange import Exchange, Rendezvous, join_store, meet
from fewshard_models.sharding.shard import LayerExperts, Shard, ShardOutput
from fewshard_models.text import PackedTokens
from fewshard_serve.group.epoch import Epoch

Report = Callable[["Prepared"], None]


@dataclass(frozen=True, slots=True)
class Prepared:
    """One shard is done with one phase ("stage" or "connect") of a generation; `problem` says why not, and
    `lacks_room` that it was memory."""

    phase: str
    generation: int
    problem: str = ""
    lacks_room: bool = False


@dataclass(slots=True, eq=False)
class _Prepared:
    formation: Epoch
    staged: tuple[LayerExperts, ...]
    exchange: Exchange | None = None


class ShardRuntime:
    """`number` is the shard's own. The store at `store_host` is where shards meet, `address` where this one
    can be reached. `run` and `keep` belong to one thread; preparing runs in threads of its own."""

    def __init__(
        self, number: int, shard: Shard, store_host: str, store_port: int, address: str, timeout_s: float
    ) -> None:
        self.number = number
        self.shard = shard
        self._store = (store_host, store_port)
        self._address = address
        self._timeout_s = timeout_s
        self._prepared: dict[int, _Prepared] = {}
        self._generation = 0

    def stage(self, formation: Epoch, report: Report) -> None:
        """Load the experts of `formation` in a thread; older ones that never ran are forgotten."""
        self._forget(lambda generation: self._generation < generation < formation.generation)

        def load() -> None:
            rank = formation.live.index(self.number)
            staged = self.shard.stage(formation.experts()[rank])
            self._prepared[formation.generation] = _Prepared(formation, staged)

        self._in_thread("stage", formation.generation, load, report)

    def connect(self, generation: int, report: Report) -> None:
        """Meet the others of a staged generation in a thread."""

        def join() -> None:
            prepared = self._prepared[generation]
            live = prepared.formation.live
            meeting = Rendezvous(
                f"generation-{generation}",
                live.index(self.number),
                len(live),
                self._address,
                self._timeout_s,
                prepared.formation.backend,
            )
            prepared.exchange = meet(join_store(*self._store, self._timeout_s), meeting)

        self._in_thread("connect", generation, join, report)

    def run(self, generation: int, packed: PackedTokens, num_rows: int) -> ShardOutput:
        """One step of a generation that is connected. Raises ExchangeError, or what the model raises.

        After any error the generation is of no use: the others are told by leaving it.
        """
        prepared = self._prepared.get(generation)
        if prepared is None or prepared.exchange is None:
            raise ExchangeError(f"generation {generation} is not connected here")
        if generation != self._generation:
            self.shard.activate(prepared.staged, prepared.formation.experts(), prepared.exchange)
            self._generation = generation
        try:
            return self.shard.run(packed, num_rows)
        except BaseException:
            self.abandon(generation)
            raise

    def abandon(self, generation: int) -> None:
        """Leave a generation, so that the others stop waiting for this shard."""
        prepared = self._prepared.get(generation)
        if prepared is not None and prepared.exchange is not None:
            prepared.exchange.abort()

    def keep(self, generation: int) -> None:
        """Forget what came before `generation`."""
        self._forget(lambda other: other < generation)

    def close(self) -> None:
        """Leave every meeting."""
        self._forget(lambda generation: True)

    def _forget(self, which: Callable[[int], bool]) -> None:
        for generation in [generation for generation in list(self._prepared) if which(generation)]:
            exchange = self._prepared.pop(generation).exchange
            if exchange is not None:
                exchange.abort()

    def _in_thread(self, phase: str, generation: int, work: Callable[[], None], report: Report) -> None:
        def main() -> None:
            try:
                work()
            except NoRoomError as error:
                report(Prepared(phase, generation, str(error), lacks_room=True))
            except (ModelsError, KeyError) as error:  # KeyError: forgotten meanwhile
                report(Prepared(phase, generation, str(error)))
            else:
                report(Prepared(phase, generation))

        threading.Thread(target=main, name=f"{phase}-{generation}", daemon=True).start()
