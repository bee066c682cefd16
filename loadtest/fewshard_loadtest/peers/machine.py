"""Description of the machine, and Markdown tables, for reports of load tests and benchmarks."""

import os
import platform
import re
import subprocess
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from fewshard_core.cpu import CPUINFO, cpu_flags, cpu_name

_FILLING = re.compile(r"\((r|tm|c)\)|\b(cpu|processor|with .*|\d+-core|\d+th gen)\b|@.*", re.IGNORECASE)
_MATRIX_FEATURES = (
    ("amx_tile", "amx"),
    ("avx512_bf16", "avx512bf16"),
    ("avx512_vnni", "avx512vnni"),
    ("avx_vnni", "avxvnni"),
    ("avx512f", "avx512"),
    ("avx2", "avx2"),
    ("i8mm", "i8mm"),
    ("asimddp", "dotprod"),
    ("asimd", "asimd"),
)
"""Flags of /proc/cpuinfo that say how matrices are multiplied, the fastest first, and their short names."""


def machine(packages: Sequence[str] = ("ray", "torch", "locust")) -> dict[str, str]:
    """Date, commit, CPU, and versions of Python and `packages`."""
    return {
        "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "commit": _commit(),
        "cpu": cpu_name(),
        "cores": str(num_cores()),
        "python": platform.python_version(),
        **{name: _version(name) for name in packages},
    }


def num_cores() -> int:
    """Number of cores that this process and its children may use."""
    return len(os.sched_getaffinity(0))


def matrix_feature(cpuinfo: Path = CPUINFO) -> str:
    """The short name of the fastest instructions for matrices that `cpuinfo` names; "plain" without any."""
    known = set(cpu_flags(cpuinfo))
    return next((name for flag, name in _MATRIX_FEATURES if flag in known), "plain")


def cpu_slug(cpuinfo: Path = CPUINFO) -> str:
    """A folder's name for results of this CPU: its model and its fastest instructions for matrices.

    Virtual machines often hide the model, so that the instructions tell more: "intel-xeon-amx".
    """
    words = re.findall(r"[a-z0-9]+", _FILLING.sub(" ", cpu_name(cpuinfo)).lower())
    return "-".join([*words, matrix_feature(cpuinfo)])


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
