"""Shards in Ray: workers as actors in the replica's own placement group; called by `loading` in a replica.

Ray restarts a worker that dies, in the same bundle; it joins its group again by itself. Batches never
wait for a call of Ray's.
"""

import os
import signal
import socket
import threading
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import ray
from ray.util import get_node_ip_address
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from fewshard_models.classifier.base import Classifier
from fewshard_serve.backends.sharded_text import load_sharded_model
from fewshard_serve.group.worker import Worker, WorkerConfig
from fewshard_serve.rayserve.actor_process import configure_logging
from fewshard_serve.rayserve.deployment_plan import HOST_CPUS, ModelSpec

LOOPBACK = "127.0.0.1"


class ShardWorker:
    """The actor: a worker in a thread. It ends as a process whenever the worker ends."""

    def __init__(self, invitation: WorkerConfig) -> None:
        configure_logging()
        self._worker = Worker(invitation, _own_address(invitation.host == LOOPBACK))
        threading.Thread(target=self._main, name="shard-worker", daemon=True).start()

    def _main(self) -> None:
        try:
            self._worker.main()
        finally:
            os._exit(1)  # so that Ray starts another, as long as there is a leader


class RayLauncher:
    """A `Launcher` whose workers are in the bundles of the placement group that this process is in."""

    def __init__(self, num_gpus: float) -> None:
        self._num_gpus = num_gpus
        self._group = ray.util.get_current_placement_group()
        assert self._group is not None, "the replica is in no placement group. This is a bug."
        self._workers: dict[int, Any] = {}

    def start(self, invitations: Sequence[WorkerConfig]) -> None:
        for invitation in invitations:
            self._workers[invitation.shard] = self._in_bundle(
                ShardWorker, invitation.shard, num_cpus=HOST_CPUS, num_gpus=self._num_gpus, max_restarts=-1
            ).remote(invitation)

    def tend(self) -> None:
        """Ray does that."""

    def kill(self, shard: int, host: str, pid: int) -> None:
        """By its process: an actor that is stopped hears no call of Ray's."""
        if host == socket.gethostname():
            _kill(pid)
        else:
            self._in_bundle(_kill, shard, num_cpus=0, max_retries=0).remote(pid)

    def stop(self) -> None:
        for worker in self._workers.values():
            ray.kill(worker)

    def _in_bundle(self, what: Any, shard: int, **options: Any) -> Any:
        strategy = PlacementGroupSchedulingStrategy(self._group, placement_group_bundle_index=shard)
        return ray.remote(what).options(scheduling_strategy=strategy, **options)


def _kill(pid: int) -> None:
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


def _own_address(is_on_one_machine: bool) -> str:
    """Where the other shards reach this one. Ray names a machine's outer address even if it is alone."""
    return LOOPBACK if is_on_one_machine else get_node_ip_address()


def load_with_shards(spec: ModelSpec, num_gpus: float, is_on_one_machine: bool) -> Classifier:
    """The model of a replica that leads a group. Raises NotReady as `load_sharded_model` does."""
    assert spec.experts is not None
    launcher, address = RayLauncher(num_gpus), _own_address(is_on_one_machine)
    return load_sharded_model(spec.name, spec.path, spec.device, spec.dtype, spec.experts, launcher, address)
