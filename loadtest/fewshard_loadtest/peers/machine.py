"""Where a benchmark ran, and tables for its report; used by `report` and by `make bench`."""

import os
import platform
import subprocess
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

_CPUINFO = Path("/proc/cpuinfo")


def machine(packages: Sequence[str] = ("ray", "torch", "locust")) -> dict[str, str]:
    """Where and when, and with which versions."""
    return {
        "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "commit": _commit(),
        "cpu": cpu_name(_CPUINFO),
        "cores": str(num_cores()),
        "python": platform.python_version(),
        **{name: _version(name) for name in packages},
    }


def num_cores() -> int:
    """The cores this process, and all it starts, may use."""
    return len(os.sched_getaffinity(0))


def cpu_name(cpuinfo: Path) -> str:
    """As the kernel calls it, else the architecture."""
    lines = cpuinfo.read_text(encoding="utf-8").splitlines() if cpuinfo.is_file() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table of cells that hold no bar."""
    lines = [header, ("---",) * len(header), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _commit() -> str:
    """The commit the package was run from; a plus sign where its files were changed since."""
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
