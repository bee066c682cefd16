"""Checks, before anything starts, that the machine has what a server needs; `launch` and `echo` call it.

Each error is one sentence that names what is missing, and what to do.
"""

import errno
import os
import resource
import shutil
import socket
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import psutil

from fewshard_serve.config import ServerConfig
from fewshard_serve.errors import StartError
from fewshard_serve.rayserve.run_folder import launcher_of

MAX_CONNECTIONS = "RAY_SERVE_HAPROXY_MAXCONN"
"""The variable with the number of connections. HAProxy needs two files for each, and ends without them."""
OTHER_FILES = 1000
"""Files that HAProxy opens besides, at the most."""
MIN_FREE_BYTES = 16 * 2**20
"""What Ray writes while it starts, and some minutes of its log."""


def check_files() -> None:
    """Raise `StartError` if this user's processes may open too few files. Needs `prepare_environment`."""
    needed = 2 * int(os.environ.get(MAX_CONNECTIONS, "4096")) + OTHER_FILES
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < needed:
        raise StartError(
            f"a process may open only {hard} files here, and HAProxy needs {needed}; raise the hard limit "
            f"(ulimit -Hn, LimitNOFILE= of systemd, --ulimit nofile={needed} of docker)"
        )


def check_space(folder: str) -> None:
    """Raise `StartError` if the disk of a folder is full."""
    free = shutil.disk_usage(folder).free
    if free < MIN_FREE_BYTES:
        raise StartError(
            f"only {free / 2**20:.0f} MiB are free on the disk of {folder}, and a server needs "
            f"{MIN_FREE_BYTES / 2**20:.0f} to start; delete what is not needed there"
        )


def why_no_folder(error: OSError) -> str:
    """Say why there is no folder for the run."""
    return (
        f"the server keeps its sockets and logs in /tmp and cannot write there ({error.strerror}); make it "
        "writable, or mount an empty folder there"
    )


@contextmanager
def ports_held(server: ServerConfig) -> Iterator[None]:
    """Keep other servers from starting on these ports within the block. Raises `StartError` if one is taken.

    HAProxy would silently share a port that is in use, also with another HAProxy, so that of two servers that
    start at once both would answer.
    """
    with ExitStack() as stack:
        for port, option in ((server.port, "--port"), (server.grpc_port, "--grpc-port")):
            if port:
                _check_one(server.host, port, option)
                stack.enter_context(_reserved(server.host, port, option))
        yield


def check_port(server: ServerConfig) -> None:
    """Raise `StartError` if a port cannot be bound."""
    with ports_held(server):
        pass


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
        whose = f"port {port} is in use{_by_whom(port)}"
        return f"{whose}; stop what listens there, or choose another with {option}"
    if error.errno == errno.EACCES:
        return f"port {port} needs privileges; choose one from 1024 up with {option}"
    return f"cannot listen on {host}:{port} ({error.strerror}); choose another with --host"


def _by_whom(port: int) -> str:
    """Return " by" the process that listens there; "" if that cannot be seen."""
    try:
        found = [
            each.pid
            for each in psutil.net_connections("tcp")
            if each.pid and each.laddr and each.laddr.port == port and each.status == psutil.CONN_LISTEN
        ]
        if not found:
            return ""
        if launcher := launcher_of(found[0]):
            return f" by another Fewshard server (process {launcher})"
        command = " ".join(" ".join(psutil.Process(found[0]).cmdline()).split())
        return f" by process {found[0]} ({command[:100]})"
    except (psutil.Error, OSError):
        return ""


@contextmanager
def _reserved(host: str, port: int, option: str) -> Iterator[None]:
    """Hold a name that only one process can hold. The kernel frees it when the process ends."""
    if sys.platform != "linux":
        yield
        return
    with socket.socket(socket.AF_UNIX) as name:
        try:
            name.bind(f"\0fewshard-{os.getuid()}-{host}-{port}")
        except OSError as error:
            raise StartError(
                f"another Fewshard server is starting on port {port}; stop it, or choose another port with "
                f"{option}"
            ) from error
        yield
