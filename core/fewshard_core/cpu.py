"""What the processor is, and how much of it this process may use. Tuning, the server and `doctor` read it."""

import os
import platform
from pathlib import Path

CPUINFO = Path("/proc/cpuinfo")
CGROUPS = Path("/sys/fs/cgroup")


def cpu_name(cpuinfo: Path = CPUINFO) -> str:
    """Return the CPU's model name; its architecture if the system does not tell."""
    fields = _first_processor(cpuinfo)
    return fields.get("model name") or platform.processor() or platform.machine()


def cpu_flags(cpuinfo: Path = CPUINFO) -> list[str]:
    """Return the features of the first processor, sorted; none if the system does not tell."""
    fields = _first_processor(cpuinfo)
    return sorted((fields.get("flags") or fields.get("features") or "").split())


def cpu_quota(cgroups: Path = CGROUPS) -> float | None:
    """Return how many cores the container's quota allows, by cgroup v2 or v1; None without a quota."""
    found = _numbers(cgroups / "cpu.max")  # v2: "QUOTA PERIOD", or "max PERIOD"
    for folder in (cgroups / "cpu", cgroups / "cpu,cpuacct"):
        found = found or _numbers(folder / "cpu.cfs_quota_us", folder / "cpu.cfs_period_us")
    if found is None or found[0] <= 0:  # v1 writes -1 for none
        return None
    return found[0] / found[1]


def available_cores(cgroups: Path = CGROUPS) -> int:
    """Return the number of whole cores for this process: at most its container's quota, at least 1."""
    has_affinity = hasattr(os, "sched_getaffinity")  # not on macOS
    cores = len(os.sched_getaffinity(0)) if has_affinity else os.cpu_count() or 1
    quota = cpu_quota(cgroups)
    return cores if quota is None else min(cores, max(1, int(quota)))


def _first_processor(cpuinfo: Path) -> dict[str, str]:
    try:
        lines = cpuinfo.read_text(encoding="utf-8").splitlines()
    except OSError:
        return {}
    pairs = (line.partition(":") for line in reversed(lines))  # so that the first of a name stays
    return {key.strip().lower(): value.strip() for key, _, value in pairs}


def _numbers(*files: Path) -> tuple[int, int] | None:
    """Return the two numbers that the files hold together; None if they hold none, or no positive period."""
    try:
        quota, period = (int(word) for file in files for word in file.read_text(encoding="ascii").split())
    except (OSError, ValueError):
        return None
    return (quota, period) if period > 0 else None
