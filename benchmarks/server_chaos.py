"""Everything that may happen to a server of this machine, as one table: part of `make chaos`, or see --help.

Each part starts `fewshard serve` with small models, does something to it beside small requests that nobody
sends twice, and adds rows with what was seen and whether the target is met:

  processes  every process killed, stopped, and twice at once
  restarts   `fewshard serve` again after kill -9 of launcher, GCS and raylet
  limits     valid requests at their limits from one address, beside a second caller
  stops      SIGTERM in eight states
  updates    updates to models that cannot answer
  soak       good and bad requests for long, kills among them

The table is kept after every row as JSON and Markdown. Ctrl-C or SIGTERM ends the run and every server; with
--resume it goes on after the last row. Traffic stays on this machine's loopback. The full form takes a night.
"""

import argparse
import asyncio
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import chaos_limits
import chaos_processes
import chaos_restarts
import chaos_soak
import chaos_stops
import chaos_updates
from chaos_server import COMMAND
from chaos_stage import FULL, SHORT, Form, Stage, as_dict
from chaos_table import Table

from fewshard_loadtest.peers.machine import cpu_slug

ROOT = Path(__file__).parents[1]
RUNS = ROOT / "runs"
PARTS: dict[str, ModuleType] = {
    "processes": chaos_processes,
    "restarts": chaos_restarts,
    "limits": chaos_limits,
    "stops": chaos_stops,
    "updates": chaos_updates,
    "soak": chaos_soak,
}
EXIT_INTERRUPTED = 130


async def run(stage: Stage, names: list[str]) -> None:
    for name in names:
        stage.part = name
        part: Callable[[Stage], Awaitable[None]] = PARTS[name].run
        await part(stage)
        stage.end()


def main() -> int:
    options = _parse()
    parts = {name: part.PART for name, part in PARTS.items()}
    table = Table(options.out, parts, as_dict(options.form), options.parts, options.resume)
    if options.checkout:
        table.machine["commit"] = _commit(options.checkout)
    # SIGTERM ends this as Ctrl-C does: with everything that was started.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    RUNS.mkdir(exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix="chaos-", dir=RUNS))
    stage = Stage(folder, options.port, options.form, table, _command(options.checkout))
    try:
        asyncio.run(run(stage, options.parts))
    except KeyboardInterrupt:
        print("interrupted; --resume goes on after the last row", file=sys.stderr)
        return EXIT_INTERRUPTED
    finally:
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_IGN)
        stage.end(at_once=True)
    print(table.as_markdown())
    if any(row.met is False for row in table.rows if row.part in options.parts):
        print(f"targets were missed; the servers' logs are in {folder}", file=sys.stderr)
        return 1
    shutil.rmtree(folder)
    return 0


def _command(checkout: Path | None) -> Sequence[str]:
    """Return what runs `fewshard`. Another checkout's must not find this one's packages."""
    if checkout is None:
        return COMMAND
    return "env", "-u", "PYTHONPATH", str(checkout / ".venv/bin/fewshard")


def _commit(checkout: Path) -> str:
    command = ["git", "-C", str(checkout), "describe", "--always", "--dirty=+", "--exclude=*"]
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip() or "unknown"


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument(
        "--short", action="store_true", help="kills alone, each once, and few requests: a quarter of an hour"
    )
    parser.add_argument("--parts", type=_parts, default=list(PARTS), help="some of them, with commas between")
    parser.add_argument(
        "--seconds", type=float, help=f"of probes after each deed ({FULL.seconds:g}; short {SHORT.seconds:g})"
    )
    parser.add_argument(
        "--requests", type=int, help=f"of the soak ({FULL.requests:,}; short {SHORT.requests:,})"
    )
    ways = ", ".join(FULL.ways)
    parser.add_argument(
        "--ways", type=_ways, help=f"what is done to processes ({ways}; short {SHORT.ways[0]})"
    )
    parser.add_argument(
        "--resume", action="store_true", help="keep the rows of this form that are there already"
    )
    parser.add_argument("--port", type=int, default=8140, help="and the next, for gRPC (8140)")
    parser.add_argument("--checkout", type=Path, help="measure another checkout, with its own .venv")
    parser.add_argument("--out", type=Path, help="a folder (docs/results/cpu/CPU; short: runs/chaos)")
    options = parser.parse_args()
    form: Form = SHORT if options.short else FULL
    given = {name: getattr(options, name) for name in ("seconds", "requests", "ways")}
    options.form = replace(form, **{name: value for name, value in given.items() if value is not None})
    kept = RUNS / "chaos" if options.short else ROOT / "docs/results/cpu" / cpu_slug()
    options.out = options.out or kept
    return options


def _parts(text: str) -> list[str]:
    return _chosen(text, "part", list(PARTS))


def _ways(text: str) -> tuple[str, ...]:
    return tuple(_chosen(text, "way", FULL.ways))


def _chosen(text: str, kind: str, known: Sequence[str]) -> list[str]:
    chosen = text.split(",")
    if unknown := sorted(set(chosen) - set(known)):
        raise argparse.ArgumentTypeError(
            f"no {kind} is called {', '.join(unknown)}; there are: {', '.join(known)}"
        )
    return chosen


if __name__ == "__main__":
    sys.exit(main())
