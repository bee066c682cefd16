"""Starts a server for a benchmark, waits until it is ready, weighs its processes and stops it."""

import signal
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import psutil

READY_TIMEOUT_S = 300.0
STOP_TIMEOUT_S = 90.0


@dataclass(frozen=True, slots=True)
class Memory:
    """One process. `pss_mib` shares out what several processes map, so that it may be added up."""

    name: str
    rss_mib: float
    pss_mib: float


class BenchmarkError(RuntimeError):
    """The server under test did not come up, or left while it was measured."""


@contextmanager
def serving(command: Sequence[str], url: str, log: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Run `command` until the block ends, then SIGTERM it. Its output goes to `log`.

    Raises `BenchmarkError` where it leaves or is not ready within `READY_TIMEOUT_S`.
    """
    with log.open("wb") as output:
        server = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT)
        try:
            _wait_until_ready(server, url, log)
            yield server
        finally:
            _stop(server)


def memory_of(pid: int) -> list[Memory]:
    """The process and all below it, the heaviest first."""
    root = psutil.Process(pid)
    weighed = [_weigh(process) for process in [root, *root.children(recursive=True)]]
    return sorted((entry for entry in weighed if entry), key=lambda entry: -entry.rss_mib)


def _weigh(process: psutil.Process) -> Memory | None:
    """None for a process that has just gone."""
    try:
        info = process.memory_full_info()
        return Memory(_role(process.cmdline()), round(info.rss / 2**20, 1), round(info.pss / 2**20, 1))
    except psutil.Error:
        return None


def _role(command: Sequence[str]) -> str:
    """A short name: Ray renames its workers (`ray::ServeReplica:…`); others go by program and script."""
    if not command:
        return "unknown"
    if command[0].startswith("ray::"):
        return command[0].split()[0]
    program = Path(command[0]).name
    scripts = [Path(part).name for part in command[1:] if part.endswith((".py", "/fewshard"))]
    return f"{program} {scripts[0]}" if scripts else program


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
        return httpx.get(f"{url}/v2/health/ready", timeout=2.0).is_success
    except httpx.TransportError:
        return False


def _stop(server: subprocess.Popen[bytes]) -> None:
    server.send_signal(signal.SIGTERM)
    try:
        server.wait(STOP_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        server.kill()
        server.wait()
