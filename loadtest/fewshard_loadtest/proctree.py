"""What a server's process and all below it use, read from this machine while it is measured."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil


@dataclass(frozen=True, slots=True)
class Memory:
    """One process. `pss_mib` shares out what several processes map, so that it may be added up."""

    name: str
    rss_mib: float
    pss_mib: float


def cpu_seconds(pid: int) -> float:
    """CPU time that the tree has used so far, with children that have ended and were awaited.

    The difference of two calls is what was used in between. 0 where there is no such process.
    """
    return sum(_cpu_of(process) for process in tree(pid))


def memory_of(pid: int) -> list[Memory]:
    """The process and all below it, the heaviest first."""
    weighed = [_weigh(process) for process in tree(pid)]
    return sorted((entry for entry in weighed if entry), key=lambda entry: -entry.rss_mib)


def tree(pid: int) -> Iterator[psutil.Process]:
    """The process and its descendants; none where it has gone."""
    try:
        root = psutil.Process(pid)
        yield from [root, *root.children(recursive=True)]
    except psutil.NoSuchProcess:
        return


def _cpu_of(process: psutil.Process) -> float:
    try:
        times = process.cpu_times()
    except psutil.Error:
        return 0.0
    return float(times.user + times.system + times.children_user + times.children_system)


def _weigh(process: psutil.Process) -> Memory | None:
    """None for a process that has just gone."""
    try:
        info = process.memory_full_info()
        return Memory(role(process.cmdline()), round(info.rss / 2**20, 1), round(info.pss / 2**20, 1))
    except psutil.Error:
        return None


def role(command: Sequence[str]) -> str:
    """A short name: Ray renames its workers (`ray::ServeReplica:…`); others go by program and script."""
    if not command:
        return "unknown"
    if command[0].startswith("ray::"):
        return command[0].split()[0]
    program = Path(command[0]).name
    scripts = [Path(part).name for part in command[1:] if part.endswith((".py", "/fewshard"))]
    return f"{program} {scripts[0]}" if scripts else program
