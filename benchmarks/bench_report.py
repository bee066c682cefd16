"""The report of the server benchmark, as JSON and Markdown; `server.py` fills it."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from fewshard_loadtest import Result
from fewshard_loadtest.peers.machine import machine, markdown_table
from fewshard_loadtest.resource_usage import Memory


@dataclass(frozen=True, slots=True)
class Report:
    """Results of a benchmark.

    runs: results by server.
    memory: memory of a server's processes after its runs.
    """

    command: str
    runs: dict[str, list[Result]]
    memory: dict[str, list[Memory]]

    def write(self, folder: Path) -> None:
        """Write `server.json` and `server.md` into `folder`."""
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "server.json").write_text(json.dumps(self.as_dict(), indent=2) + "\n", encoding="utf-8")
        (folder / "server.md").write_text(self.as_markdown(), encoding="utf-8")

    def as_dict(self) -> dict[str, Any]:
        """Return JSON values."""
        return {
            "command": self.command,
            "machine": machine(),
            "runs": {name: [run.as_dict() for run in runs] for name, runs in self.runs.items()},
            "memory": {name: [asdict(entry) for entry in entries] for name, entries in self.memory.items()},
        }

    def as_markdown(self) -> str:
        """Return a table of runs, a table of memory, and the command to repeat them."""
        about = ", ".join(f"{key} {value}" for key, value in machine().items())
        parts = ["# Server benchmark", f"{about}.", f"Command: `{self.command}`", _runs_table(self.runs)]
        parts += [NOTES, "## Memory", _memory_table(self.memory)]
        return "\n\n".join(parts) + "\n"


NOTES = (
    "Latencies in milliseconds, of good answers. The load generator runs on the same machine and takes the "
    "share of one core given in its column; near 1.00 it is the bottleneck. `echo` is an ASGI application "
    "that does nothing, deployed the same way: what Ray Serve and HAProxy alone cost here."
)


def _runs_table(all_runs: dict[str, list[Result]]) -> str:
    header = (
        "server",
        "model",
        "protocol",
        "users",
        "requests",
        "failures",
        "rps",
        "p50",
        "p99",
        "generator",
    )
    rows = [_run_row(name, run) for name, runs in all_runs.items() for run in runs]
    return markdown_table(header, rows)


def _run_row(server: str, run: Result) -> tuple[str, ...]:
    counts = (str(run.plan.num_users), str(run.num_requests), str(run.num_failures), f"{run.rps:.1f}")
    latencies = (_milliseconds(run.p50_ms), _milliseconds(run.p99_ms))
    return (server, run.plan.model, run.plan.protocol, *counts, *latencies, f"{run.generator_cpu:.2f}")


def _milliseconds(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


def _memory_table(all_memory: dict[str, list[Memory]]) -> str:
    rows: list[tuple[str, ...]] = []
    for server, entries in all_memory.items():
        rows += [(server, each.name, f"{each.rss_mib:.0f}", f"{each.pss_mib:.0f}") for each in entries]
        rows.append((server, "**together**", "", f"{sum(each.pss_mib for each in entries):.0f}"))
    return markdown_table(("server", "process", "resident MiB", "proportional MiB"), rows)
