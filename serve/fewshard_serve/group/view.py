"""What `membership` tells the leader: the epochs to use, and the state of the group."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Protocol

from fewshard_models.sharding import Placement
from fewshard_serve.group.epoch import Epoch
from fewshard_serve.group.workers import Peer


@dataclass(frozen=True, slots=True, eq=False)
class View:
    """A published epoch.

    peers: the links to its workers.
    newcomers: shards that have not answered any input yet.
    """

    epoch: Epoch
    newcomers: Collection[int]
    peers: Mapping[int, Peer]


@dataclass(frozen=True, slots=True)
class GroupStatus:
    """The state of a group, for `/experts` and the metrics.

    problem: why it cannot answer; "" if it can.
    is_unrecoverable: the problem will not go away by waiting.
    placement: the one in force; before the first epoch, the target.
    """

    num_shards: int
    size: int
    generation: int
    num_reforms: int
    num_moves: int
    is_degraded: bool
    problem: str
    is_unrecoverable: bool
    placement: Placement


class Stage(Protocol):
    """Uses the published epochs; the leader implements it. All methods are called from the control thread."""

    def publish(self, view: View) -> None:
        """Use this epoch from the next batch on."""

    def halt(self, generation: int) -> None:
        """Stop using this epoch. Another one follows, or the status gives the reason."""

    def tick(self) -> None:
        """Called after each event and at regular intervals."""
