"""Looks at the loads of a group now and then, and has its experts moved where that is worth it."""

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from fewshard_models.sharding import Placement
from fewshard_serve.group.membership import GroupStatus
from fewshard_serve.placement.policy import Rebalancer

logger = logging.getLogger(__name__)

APPLY_TIMEOUT_S = 60.0


@dataclass(slots=True)
class Rebalancing:
    """`loads`: tokens of each expert since the start; `place` has a placement put in force, and says whether
    it is. `rebalancer` decides."""

    rebalancer: Rebalancer
    loads: Callable[[], NDArray[np.int64]]
    status: Callable[[], GroupStatus]
    place: Callable[[Placement, float], bool]
    _stopped: threading.Event = field(default_factory=threading.Event)

    def start(self, every_s: float) -> None:
        """Look every so many seconds, in a thread."""
        threading.Thread(target=self._main, args=(every_s,), name="group-rebalance", daemon=True).start()

    def stop(self) -> None:
        self._stopped.set()

    def look(self, now_s: float) -> bool:
        """Decide once; whether experts were moved. A group that lacks shards is left alone."""
        self.rebalancer.observe(self.loads(), now_s)
        status = self.status()
        if status.problem or status.size < status.num_shards:
            return False
        decision = self.rebalancer.decide(status.placement, now_s)
        logger.info("rebalancing: %s", decision.reason)
        if decision.placement is None or not self.place(decision.placement, APPLY_TIMEOUT_S):
            return False
        self.rebalancer.changed(now_s)
        return True

    def _main(self, every_s: float) -> None:
        while not self._stopped.wait(every_s):
            try:
                self.look(time.monotonic())
            except Exception:  # a planner that fails must not end rebalancing, still less the group
                logger.exception("rebalancing failed")
