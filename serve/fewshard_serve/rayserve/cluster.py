"""Starts a local Ray, or joins a running one. `launch` sets its environment variables first."""

import errno
import logging
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

from fewshard_serve.config import ServerConfig
from fewshard_serve.errors import StartError
from fewshard_serve.rayserve.minimal_head import minimal_head

logger = logging.getLogger(__name__)

OBJECT_STORE_BYTES = 128 * 2**20
"""A small object store is enough, because requests never pass through it."""
START_TRIES = 3
TOO_SLOW = "timed out during startup"
"""Ray allows its first node 30 s, which cannot be configured. A busy machine may need longer."""


def check_port(server: ServerConfig) -> None:
    """Raise `StartError` if a port cannot be bound. HAProxy would silently share a port that is in use."""
    for port, option in ((server.port, "--port"), (server.grpc_port, "--grpc-port")):
        if port:
            _check_one(server.host, port, option)


def _check_one(host: str, port: int, option: str) -> None:
    try:
        family, kind, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
    except OSError as error:
        raise StartError(_why_no_port(host, port, option, error)) from error


def _why_no_port(host: str, port: int, option: str, error: OSError) -> str:
    if error.errno == errno.EADDRINUSE:
        return f"port {port} is in use; stop what listens there, or choose another with {option}"
    if error.errno == errno.EACCES:
        return f"port {port} needs privileges; choose one from 1024 up with {option}"
    return f"cannot listen on {host}:{port} ({error.strerror}); choose another with --host"


@contextmanager
def ray_cluster(address: str | None, num_cpus_wanted: int, forwards_output: bool = True) -> Iterator[None]:
    """Start Ray here if `address` is None, else join it. On exit disconnect; a Ray started here ends.

    forwards_output: print what the workers of a Ray started here print.
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
    try:
        yield
    finally:
        ray.shutdown()


def _why_no_ray(address: str | None, error: Exception) -> str:
    if address is None:
        return f"Ray cannot start here: {error}"
    return f"Ray at {address} cannot be joined: {error}; if it asks for a token, set RAY_AUTH_MODE=token"


def _init(address: str | None, num_cpus_wanted: int) -> None:
    import ray

    quiet = {"logging_level": logging.WARNING, "log_to_driver": True}
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
        **quiet,
    )
