"""Runs the workers of a group as Ray actors in the replica's placement group. `model_loader` calls it.

Ray restarts a worker that dies, in the same bundle, and the worker joins its group again. Batches never wait
for a Ray call.
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
    """The actor: a worker in a thread. The process ends when the worker ends."""

    def __init__(self, config: WorkerConfig) -> None:
        configure_logging()
        self._worker = Worker(config, _own_address(config.host == LOOPBACK))
        threading.Thread(target=self._main, name="shard-worker", daemon=True).start()

    def _main(self) -> None:
        try:
            self._worker.main()
        finally:
            os._exit(1)  # so that Ray restarts it, as long as the leader lives


class RayLauncher:
    """A `Launcher` that starts workers in the bundles of this process's placement group."""

    def __init__(self, num_gpus: float) -> None:
        self._num_gpus = num_gpus
        self._group = ray.util.get_current_placement_group()
        assert self._group is not None, "the replica is in no placement group. This is a bug."
        self._workers: dict[int, Any] = {}

    def start(self, configs: Sequence[WorkerConfig]) -> None:
        for config in configs:
            self._workers[config.shard] = self._in_bundle(
                ShardWorker, config.shard, num_cpus=HOST_CPUS, num_gpus=self._num_gpus, max_restarts=-1
            ).remote(config)

    def tend(self) -> None:
        """Nothing to do: Ray restarts workers."""

    def kill(self, shard: int, host: str, pid: int) -> None:
        """Kill the process: a suspended actor does not receive Ray calls."""
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
    """Return the address for the other shards. Ray reports a machine's outer address even if it is alone."""
    return LOOPBACK if is_on_one_machine else get_node_ip_address()


def load_with_shards(spec: ModelSpec, num_gpus: float, is_on_one_machine: bool) -> Classifier:
    """Return the model of a replica that leads a group. Raises NotReady as `load_sharded_model` does."""
    assert spec.experts is not None
    launcher, address = RayLauncher(num_gpus), _own_address(is_on_one_machine)
    return load_sharded_model(spec.name, spec.path, spec.device, spec.dtype, spec.experts, launcher, address)
