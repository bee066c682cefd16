"""The server benchmark as JSON and as Markdown."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from fewshard_loadtest.peers import summary
from fewshard_loadtest.peers.catalogue import FEWSHARD, NOTHING, PEERS, titles
from fewshard_loadtest.peers.engines import CLASS_POINTS, fastest
from fewshard_loadtest.peers.environments import versions
from fewshard_loadtest.peers.machine import cpu_slug, machine, markdown_table
from fewshard_loadtest.peers.rounds import Found
from fewshard_loadtest.peers.session import NUM_CLIENTS
from fewshard_loadtest.peers.settings import chosen
from fewshard_loadtest.peers.summary import CpuSplit, Ratio, Row

_PACKAGES = ("fewshard", "ray", "torch", "transformers", "tokenizers", "locust")
_FIGURES = ("req/s", "p50 ms", "p95 ms", "p99 ms", "requests", "refused", "errors", "CPU ms", "generator")
NOTES = " ".join(
    (
        "Every server gets the same checkpoint, the same cores and one text a request, over the",
        "loopback and kept-alive connections, and is alone on the machine with the load generator.",
        "Each round starts every server anew; rounds alternate in order; figures are medians over",
        "rounds, counts are sums. Latencies are of good answers. `req/s`: good answers within the",
        "measured time. `refused`: 429 or 503; `errors`: all else, answers without a label included.",
        "`CPU ms`: CPU time of all processes of the server for a good answer. `generator`: the share",
        "of one core that the load generator took, on the same machine; near 1.00 it is the",
        "bottleneck.",
    )
)


@dataclass(frozen=True, slots=True)
class Report:
    """The results of the benchmark.

    command: the command line.
    model: description of the checkpoint.
    found: all measurements.
    model_ms: CPU milliseconds of tokeniser and model by batch size.
    """

    command: str
    model: str
    found: Found
    model_ms: Mapping[int, float] = field(default_factory=dict)

    def write(self, folder: Path) -> tuple[Path, Path]:
        """Write `server.json` and `server.md` to `folder`; returns their paths."""
        folder.mkdir(parents=True, exist_ok=True)
        as_json, as_markdown = folder / "server.json", folder / "server.md"
        as_json.write_text(json.dumps(self.as_dict(), indent=1) + "\n", encoding="utf-8")
        as_markdown.write_text(self.as_markdown(), encoding="utf-8")
        return as_json, as_markdown

    def as_dict(self) -> dict[str, Any]:
        """Every run of every round, and the summary, for JSON."""
        found = self.found
        return {
            "command": self.command,
            "machine": machine(_PACKAGES),
            "cpu_slug": cpu_slug(),
            "model": self.model,
            "versions": {server.name: versions(server.environment_name, server.packages) for server in PEERS},
            "closed_loop": [_row_dict(row) for row in summary.closed_loop(found)],
            "open_loop": [_row_dict(row) for row in summary.open_loop(found)],
            "cpu": [{**asdict(split), "rest_ms": split.rest_ms} for split in self._splits()],
            "ratios": [asdict(ratio) for ratio in summary.ratios(found)],
            "tuning": {
                name: [{**asdict(setting), **asdict(one)} for setting, one in tried.items()]
                for name, tried in found.tuning.items()
            },
            "trials": [asdict(trial) for trial in found.trials],
            "accuracy_in_fp32": found.of_fp32,
            "missing": found.missing,
            "sessions": self._sessions(),
        }

    def as_markdown(self) -> str:
        """The machine, the comparison with the best peer, and all tables."""
        found = self.found
        about = ", ".join(f"{key} {value}" for key, value in machine(_PACKAGES).items())
        parts = [
            "# Server benchmark",
            f"{about}.",
            f"Checkpoint: {self.model}.",
            f"Command: `{self.command}`",
        ]
        parts += [NOTES, *_ratio_part(summary.ratios(found))]
        parts += ["## Closed loop", *_tables(summary.closed_loop(found), _users)]
        parts += ["## Open loop, Poisson arrivals", OPEN_NOTE, *_tables(summary.open_loop(found), _share)]
        parts += [*_cpu_part(self._splits()), "## Servers and settings", CLASS_NOTE, _servers_table(found)]
        parts += [
            *_trials_part(found),
            *_tuning_part(found),
            *_missing_part(found),
            "## What each server is",
            _about_servers(),
        ]
        return "\n\n".join(parts) + "\n"

    def _splits(self) -> list[CpuSplit]:
        return summary.cpu_splits(self.found, self.model_ms)

    def _sessions(self) -> list[dict[str, Any]]:
        return [
            {
                "server": subject.server.name,
                "setting": asdict(subject.setting),
                "accuracy": summary.accuracy(self.found, subject),
                "is_as_fp32": summary.in_class(self.found, subject),
                "rounds": [asdict(session) for session in sessions],
            }
            for subject, sessions in self.found.sessions.items()
        ]


CLASS_NOTE = (
    f"`SST-2 dev`: labels that are right over HTTP, {NUM_CLIENTS} requests in flight; `as fp32`: within "
    f"{CLASS_POINTS:g} points of the checkpoint in fp32. Only such rows are compared above."
)
TRIALS_NOTE = (
    "Without a server, half of the cores, batches of 32 sorted by length and cut. Each engine's peers are "
    "tuned with the fastest format whose accuracy is that of fp32."
)
OPEN_NOTE = (
    "Requests are sent at random times that no answer delays, at a share of the most that the same server "
    "answered in the closed loop just before; latency counts from the time a request was due."
)


def _row_dict(row: Row) -> dict[str, Any]:
    figures = {key: value for key, value in asdict(row).items() if key != "subject"}
    return {"server": row.subject.server.name, "setting": row.subject.setting.name, **figures}


def _users(row: Row) -> str:
    return f"{row.load:g} user{'' if row.load == 1 else 's'}"


def _share(row: Row) -> str:
    return f"{100 * row.load:.0f} % of capacity"


def _tables(rows: Sequence[Row], title: Any) -> list[str]:
    parts = []
    for load in dict.fromkeys(row.load for row in rows):
        here = [row for row in rows if row.load == load]
        sent = () if here[0].rate is None else ("sent/s",)
        parts.append(f"### {title(here[0])}")
        parts.append(markdown_table(("server", *sent, *_FIGURES), [_cells(row) for row in here]))
    return parts or ["Not run."]


def _cells(row: Row) -> tuple[str, ...]:
    sent = () if row.rate is None else (f"{row.rate:.1f}",)
    latencies = (_figure(row.p50_ms), _figure(row.p95_ms), _figure(row.p99_ms))
    counts = (str(row.num_requests), str(row.refused), str(row.failed))
    cpu = (_figure(row.cpu_ms, 2), f"{row.generator_cpu:.2f}")
    return (str(row.subject), *sent, f"{row.answered_rps:.1f}", *latencies, *counts, *cpu)


def _figure(value: float | None, digits: int = 1) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


def _ratio_part(found: Sequence[Ratio]) -> list[str]:
    if not found:
        return []
    header = ("beside the best peer", "ours", "best peer", "whose", "ratio", "wanted", "verdict")
    rows = [
        (
            *(each.what, f"{each.ours:.1f}", f"{each.best:.1f}", each.peer),
            *(
                f"{each.ratio:.2f}",
                f">= {each.wanted:.3g}",
                "met" if each.ratio >= each.wanted else "**missed**",
            ),
        )
        for each in found
    ]
    return ["## Beside the best peer", markdown_table(header, rows)]


def _cpu_part(splits: Sequence[CpuSplit]) -> list[str]:
    if not splits:
        return []
    header = ("users", "texts a batch", "CPU ms an answer", "tokeniser and model", "echo", "the rest")
    rows = [
        (
            *(str(each.num_users), f"{each.mean_batch:.1f}", f"{each.total_ms:.2f}"),
            *(f"{each.model_ms:.2f}", f"{each.echo_ms:.2f}", f"{each.rest_ms:.2f}"),
        )
        for each in splits
    ]
    note = (
        "Tokeniser and model: the same code on one thread without a server, on batches of the size that the "
        "server formed. Echo: an application that does nothing in the same set-up, under as many users."
    )
    return ["## Where Fewshard's CPU time goes", note, markdown_table(header, rows)]


def _servers_table(found: Found) -> str:
    rows = []
    for subject, sessions in found.sessions.items():
        agreeing = [session.agreeing for session in sessions if session.agreeing is not None]
        dtypes = ", ".join(sorted({session.dtype for session in sessions if session.dtype})) or "-"
        share = f"{100 * min(agreeing):.1f} %" if agreeing else "-"
        memory = f"{summary.memory_mib(sessions):.0f}"
        right = summary.accuracy(found, subject)
        fits = "-" if right is None else "as fp32" if summary.in_class(found, subject) else "**lower**"
        cells = (dtypes, share, _percent(right), fits, memory, str(len(sessions)))
        rows.append((str(subject), str(subject.setting), *cells))
    header = (
        "server",
        "setting",
        "dtype",
        "labels as in fp32",
        "SST-2 dev",
        "class",
        "memory MiB (PSS)",
        "rounds",
    )
    return markdown_table(header, rows)


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.2f} %"


def _trials_part(found: Found) -> list[str]:
    rows = []
    for trial in found.trials:
        best = fastest((each for each in found.trials if each.engine == trial.engine), found.of_fp32)
        cells = (f"{trial.per_s:.0f}", _percent(trial.accuracy), f"{100 * trial.agreeing:.1f} %")
        chosen_ = "chosen" if trial == best else trial.error and "cannot run here"
        rows.append((trial.engine, trial.dtype, *(cells if not trial.error else ("-",) * 3), chosen_))
    if not rows:
        return []
    header = ("engine", "format", "texts/s", "SST-2 dev", "labels as in fp32", "")
    return ["## Engines and formats", TRIALS_NOTE, markdown_table(header, rows)]


def _tuning_part(found: Found) -> list[str]:
    rows = [
        (
            *(titles()[name], str(setting), f"{one.answered_rps:.1f}", _figure(one.p50_ms)),
            "chosen" if setting == chosen(tried) else "",
        )
        for name, tried in found.tuning.items()
        for setting, one in tried.items()
    ]
    table = markdown_table(("server", "setting", "req/s at 64 users", "p50 ms at 1 user", ""), rows)
    return ["## Tuning", table] if rows else []


def _missing_part(found: Found) -> list[str]:
    lines = [f"- {name}: {' '.join(reason.split())}" for name, reason in found.missing.items()]
    return ["## Not measured", "\n".join(lines)] if lines else []


def _about_servers() -> str:
    lines = []
    for server in (FEWSHARD, NOTHING, *PEERS):
        found = versions(server.environment_name, server.packages) if server.is_peer else {}
        given = ", ".join(f"{package} {number}" for package, number in found.items())
        lines.append(f"- **{server.title}**{f' ({given})' if given else ''}: {server.note}")
    return "\n".join(lines)
