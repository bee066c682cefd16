"""Starts a server for a benchmark, waits until it is ready, and stops it with all its processes."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import httpx
import psutil

from fewshard_loadtest.errors import BenchmarkError
from fewshard_loadtest.resource_usage import tree

READY_TIMEOUT_S = 300.0
STOP_TIMEOUT_S = 90.0
LAST_CHILDREN_S = 5.0


@contextmanager
def serving(
    command: Sequence[str],
    ready_url: str,
    log: Path,
    environment: Mapping[str, str] | None = None,
    folder: Path | None = None,
) -> Iterator[subprocess.Popen[bytes]]:
    """Run `command` until the block ends, then send SIGTERM. Its output goes to `log`.

    The block starts once a GET of `ready_url` succeeds. Raises `BenchmarkError` if the process exits before,
    or is not ready within `READY_TIMEOUT_S`. Processes of it that are left over are killed, also when a
    SIGTERM ends this process.
    """
    with suppress(ValueError):  # not the main thread, which has to do it
        signal.signal(signal.SIGTERM, _leave)
    with log.open("wb") as output:
        server = subprocess.Popen(
            command,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=environment,
            cwd=folder,
            start_new_session=True,
        )
        try:
            _wait_until_ready(server, ready_url, log)
            yield server
        finally:
            _stop(server)


def _leave(number: int, _: object) -> None:
    """Leave every block on the way out; by default a signal leaves none."""
    sys.exit(128 + number)


def _wait_until_ready(server: subprocess.Popen[bytes], url: str, log: Path) -> None:
    give_up_at = time.monotonic() + READY_TIMEOUT_S
    while time.monotonic() < give_up_at:
        if server.poll() is not None:
            raise BenchmarkError(f"the server left with code {server.returncode}; see {log}")
        if _is_ready(url):
            return
        time.sleep(0.25)
    raise BenchmarkError(f"the server was not ready within {READY_TIMEOUT_S:g} s; see {log}")


def _is_ready(url: str) -> bool:
    try:
        return httpx.get(url, timeout=2.0).is_success
    except httpx.TransportError:
        return False


def _stop(server: subprocess.Popen[bytes]) -> None:
    family = [*list(tree(server.pid))[1:], *_of_session(server.pid)]
    server.send_signal(signal.SIGTERM)
    try:
        server.wait(STOP_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        server.kill()
        server.wait()
    _, left = psutil.wait_procs(family, LAST_CHILDREN_S)
    for process in left:
        process.kill()
    psutil.wait_procs(left, LAST_CHILDREN_S)


def _of_session(leader: int) -> Iterator[psutil.Process]:
    """Yield the processes of a session beside its leader. Some servers' workers are nobody's children."""
    for process in psutil.process_iter():
        with suppress(OSError):
            if process.pid != leader and os.getsid(process.pid) == leader:
                yield process
