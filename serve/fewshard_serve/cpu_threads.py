"""How many cores there are for this process, and how many threads a model should compute with."""

import os
from pathlib import Path

NUM_THREADS = "FEWSHARD_NUM_THREADS"
"""The environment variable by which a user decides instead."""
_CPU_MAX = Path("/sys/fs/cgroup/cpu.max")


def available_cores(cpu_max: Path = _CPU_MAX) -> int:
    """The cores this process may run on, no more than its container's quota (cgroup v2), at least 1."""
    has_affinity = hasattr(os, "sched_getaffinity")  # not on macOS
    cores = len(os.sched_getaffinity(0)) if has_affinity else os.cpu_count() or 1
    try:
        quota, period = cpu_max.read_text(encoding="ascii").split()
        return cores if quota == "max" else min(cores, max(1, int(quota) // int(period)))
    except (OSError, ValueError):
        return cores


def num_threads(num_processes: int) -> int:
    """How many threads each of `num_processes` that share this machine should compute with.

    One core is left to HTTP, tokenisers and the proxy: OpenMP's threads wait for one another, so one that has
    no core of its own stops them all (docs/log.md).
    """
    asked = os.environ.get(NUM_THREADS, "")
    return int(asked) if asked.isdigit() and int(asked) else max(1, (available_cores() - 1) // num_processes)
