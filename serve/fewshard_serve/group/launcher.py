"""Starts workers: the interface, and a launcher that starts them as child processes on this machine."""

import json
import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict
from typing import Protocol

from fewshard_serve.group.worker import WorkerConfig

START_PAUSE_S = 0.5
"""Between two starts of one worker, so that one that crashes on import does not occupy a core."""
STOP_TIMEOUT_S = 5.0


class Launcher(Protocol):
    """Starts one worker for each configuration, and restarts workers that end."""

    def start(self, configs: Sequence[WorkerConfig]) -> None: ...

    def tend(self) -> None:
        """Restart workers that have ended. Called several times a second."""

    def kill(self, shard: int, host: str, pid: int) -> None:
        """End a worker that does not answer. It may be suspended or unreachable."""

    def stop(self) -> None:
        """End all workers, and start no more."""


class ProcessLauncher:
    """Starts workers as children of this process."""

    def __init__(self) -> None:
        self._configs: dict[int, WorkerConfig] = {}
        self._children: dict[int, subprocess.Popen[str]] = {}
        self._started_at: dict[int, float] = {}

    def start(self, configs: Sequence[WorkerConfig]) -> None:
        self._configs = {config.shard: config for config in configs}
        self.tend()

    def tend(self) -> None:
        for shard, config in self._configs.items():
            child = self._children.get(shard)
            has_ended = child is None or child.poll() is not None
            if has_ended and time.monotonic() - self._started_at.get(shard, -math.inf) > START_PAUSE_S:
                self._children[shard] = _spawn(config)
                self._started_at[shard] = time.monotonic()

    def kill(self, shard: int, host: str, pid: int) -> None:
        child = self._children.get(shard)
        if child is not None and child.pid == pid:
            child.kill()

    def stop(self) -> None:
        self._configs = {}
        for child in self._children.values():
            with suppress(OSError):
                child.send_signal(signal.SIGTERM)
        for child in self._children.values():
            try:
                child.wait(STOP_TIMEOUT_S)
            except subprocess.TimeoutExpired:
                child.kill()
                child.wait()

    @property
    def pids(self) -> dict[int, int]:
        """The process id of each shard that was started."""
        return {shard: child.pid for shard, child in self._children.items()}


def _spawn(config: WorkerConfig) -> subprocess.Popen[str]:
    threads = str(config.num_threads)
    child = subprocess.Popen(
        [sys.executable, "-m", "fewshard_serve.group.worker"],
        stdin=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": threads, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert child.stdin is not None
    # Sent over stdin: command-line arguments, and so the secret, are visible to every user of the machine.
    with suppress(BrokenPipeError):
        child.stdin.write(json.dumps(asdict(config)) + "\n")
        child.stdin.close()
    return child
