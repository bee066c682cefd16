"""Starts a local Ray, or joins a running one. `launch` sets its environment variables first."""

import logging
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

from fewshard_serve.errors import StartError
from fewshard_serve.rayserve.environment import RAY_FOLDER
from fewshard_serve.rayserve.minimal_head import minimal_head
from fewshard_serve.rayserve.supervisor import VitalProcesses

logger = logging.getLogger(__name__)

OBJECT_STORE_BYTES = 128 * 2**20
"""A small object store is enough, because requests never pass through it."""
START_TRIES = 3
TOO_SLOW = "timed out during startup"
"""Ray allows its first node 30 s, which cannot be configured. A busy machine may need longer."""


@contextmanager
def ray_cluster(
    address: str | None, num_cpus_wanted: int, forwards_output: bool = True
) -> Iterator[VitalProcesses]:
    """Start Ray here if `address` is None, else join it. On exit disconnect; a Ray started here ends.

    forwards_output: print what the workers of a Ray started here print.

    Yield the processes without which a Ray started here cannot go on. The thread that enters the block must
    not end within it: Ray's servers end with the thread that has started them.
    """
    import ray

    for tries_left in reversed(range(START_TRIES if address is None else 1)):
        try:
            # Ray reports a raylet that cannot live like this as too slow; the last try is the ordinary one.
            with minimal_head(forwards_output) if address is None and tries_left else nullcontext():
                _init(address, num_cpus_wanted)
            break
        except Exception as error:
            ray.shutdown()
            if not tries_left or TOO_SLOW not in str(error):
                raise StartError(_why_no_ray(address, error)) from error
            logger.warning("Ray has not started within the time it gives itself; starting it again")
    vital = _servers() if address is None else {}
    try:
        yield vital
    finally:
        vital.clear()
        ray.shutdown()


def _servers() -> VitalProcesses:
    """Return Ray's control store and raylet, as far as Ray still knows them by these names."""
    from ray._private import ray_constants, worker

    known: Any = getattr(worker._global_node, "all_processes", {})
    names = {
        "Ray's control store (GCS)": ray_constants.PROCESS_TYPE_GCS_SERVER,
        "Ray's raylet": ray_constants.PROCESS_TYPE_RAYLET,
    }
    return {name: process.process for name, kind in names.items() for process in known.get(kind, ())}


def _why_no_ray(address: str | None, error: Exception) -> str:
    if address is None:
        return f"Ray cannot start here: {error}"
    return f"Ray at {address} cannot be joined: {error}; if it asks for a token, set RAY_AUTH_MODE=token"


def _init(address: str | None, num_cpus_wanted: int) -> None:
    import ray

    quiet = {"logging_level": logging.WARNING, "log_to_driver": True}
    if threading.current_thread() is not threading.main_thread():
        logging.getLogger("ray._private.worker").addFilter(_is_not_about_signals)
    if address is not None:
        ray.init(address=address, **quiet)
        return
    ray.init(
        address="local",  # without it RAY_ADDRESS would make this join another cluster
        # CPUs are a budget that only this server draws on. Twice the need leaves room for an update's
        # replicas.
        num_cpus=max(os.cpu_count() or 1, 2 * num_cpus_wanted),
        include_dashboard=False,
        object_store_memory=OBJECT_STORE_BYTES,
        _node_ip_address="127.0.0.1",
        # Without shared memory Ray would not start. Requests never pass through it.
        _plasma_directory=None if os.access("/dev/shm", os.W_OK) else os.environ[RAY_FOLDER],
        **quiet,
    )


def _is_not_about_signals(record: logging.LogRecord) -> bool:
    """Drop Ray's warning that it does not handle SIGTERM, which the server does itself."""
    return "SIGTERM handler is not set" not in record.getMessage()
