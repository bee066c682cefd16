"""The number of cores that this process may use, and of threads that a model should compute with."""

import os
from pathlib import Path

NUM_THREADS = "FEWSHARD_NUM_THREADS"
"""The environment variable with which a user sets the number of threads."""
_CPU_MAX = Path("/sys/fs/cgroup/cpu.max")


def available_cores(cpu_max: Path = _CPU_MAX) -> int:
    """The number of cores for this process: at most its container's quota (cgroup v2), at least 1."""
    has_affinity = hasattr(os, "sched_getaffinity")  # not on macOS
    cores = len(os.sched_getaffinity(0)) if has_affinity else os.cpu_count() or 1
    try:
        quota, period = cpu_max.read_text(encoding="ascii").split()
        return cores if quota == "max" else min(cores, max(1, int(quota) // int(period)))
    except (OSError, ValueError):
        return cores


def num_threads(num_processes: int) -> int:
    """The number of compute threads for each of `num_processes` processes on this machine.

    One core is left for HTTP, tokenizers and the proxy. OpenMP threads wait for each other, so one thread
    without a core of its own delays all of them (docs/log.md).
    """
    asked = os.environ.get(NUM_THREADS, "")
    return int(asked) if asked.isdigit() and int(asked) else max(1, (available_cores() - 1) // num_processes)
