"""Description of the machine, and Markdown tables, for reports of load tests and benchmarks."""

import os
import platform
import subprocess
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

_CPUINFO = Path("/proc/cpuinfo")


def machine(packages: Sequence[str] = ("ray", "torch", "locust")) -> dict[str, str]:
    """Date, commit, CPU, and versions of Python and `packages`."""
    return {
        "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "commit": _commit(),
        "cpu": cpu_name(_CPUINFO),
        "cores": str(num_cores()),
        "python": platform.python_version(),
        **{name: _version(name) for name in packages},
    }


def num_cores() -> int:
    """Number of cores that this process and its children may use."""
    return len(os.sched_getaffinity(0))


def cpu_name(cpuinfo: Path) -> str:
    """The CPU's name in `cpuinfo`, else the architecture."""
    lines = cpuinfo.read_text(encoding="utf-8").splitlines() if cpuinfo.is_file() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table; cells must not contain a vertical bar."""
    lines = [header, ("---",) * len(header), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _commit() -> str:
    """The commit of the running package; with a plus sign if its files have changed since."""
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty=+", "--exclude=*"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except OSError:
        return "unknown"
    return done.stdout.strip() or "unknown"


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"
