"""Compares what `auto` chooses with choices forced one by one, and with another version's default.

Servers are started one after the other, in rounds, each for a few seconds: a machine's speed drifts, so
ratios count within a round, and an idle server takes a tenth of a core from those that are measured. Run it
on a machine that does nothing else:

    .venv/bin/python benchmarks/choices.py zoo:sst2-moe --before ../before
    .venv/bin/python benchmarks/choices.py runs/minilm --int8 runs/minilm-int8 --ways auto bf16x2 int8
"""

import argparse
import json
import os
import statistics
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from fewshard_core.formats import FORMATS
from fewshard_loadtest import Plan, run_headless
from fewshard_loadtest.peers.machine import cpu_slug, machine, markdown_table, num_cores
from fewshard_loadtest.peers.processes import serving

AUTO, BEFORE = "auto", "before"


@dataclass(frozen=True, slots=True)
class Way:
    """One way to run the model.

    name: as it is printed.
    fewshard: the command of the checkout that runs it.
    path: of the checkpoint.
    dtype: a number format, or "auto".
    num_threads: what FEWSHARD_NUM_THREADS says; 0 leaves it unset.
    """

    name: str
    fewshard: Path
    path: str
    dtype: str = AUTO
    num_threads: int = 0


@dataclass(frozen=True, slots=True)
class Measured:
    """One window: requests/s and median latency in ms, by number of users."""

    way: str
    rps: dict[int, float]
    p50_ms: dict[int, float]


def main() -> int:
    options = _parse()
    folder = options.out or Path("docs/results/cpu") / cpu_slug()
    folder.mkdir(parents=True, exist_ok=True)
    ways = [way for way in _ways(options) if not options.ways or way.name in (BEFORE, *options.ways)]
    runs: list[Measured] = []
    for number in range(options.rounds):
        for way in ways[number % len(ways) :] + ways[: number % len(ways)]:
            with up(way, folder, options.port) as url:
                runs.append(measure(way.name, url, options))
            print(runs[-1], file=sys.stderr, flush=True)
        _write(runs, ways, folder, options)
    print(_markdown(runs, ways, options.users))
    return 0


def _ways(options: argparse.Namespace) -> Iterator[Way]:
    own = Path(sys.executable).with_name("fewshard")
    if options.before:
        yield Way(BEFORE, options.before.resolve() / ".venv/bin/fewshard", options.path)
    yield Way(AUTO, own, options.path)
    threads = sorted({1, num_cores()})
    for each in FORMATS:
        if each.is_cast and each.multiplies("cpu"):
            for number in threads:
                yield Way(f"{each.name}x{number}", own, options.path, each.name, number)
    if options.int8:
        yield Way("int8", own, options.int8)
        for number in threads:
            yield Way(f"int8x{number}", own, options.int8, num_threads=number)


@contextmanager
def up(way: Way, folder: Path, port: int) -> Iterator[str]:
    """Run a server within the block; yields its URL."""
    url, name = f"http://127.0.0.1:{port}", way.name.replace(" ", "")
    config, log = folder / f"choices-{name}.yaml", folder / f"choices-{name}.log"
    path = way.path if ":" in way.path else str(Path(way.path).resolve())
    config.write_text(f"models:\n  - {{name: model, path: '{path}', dtype: {way.dtype}}}\n")
    threads = {"FEWSHARD_NUM_THREADS": str(way.num_threads)} if way.num_threads else {}
    command = [str(way.fewshard), "serve", str(config.resolve()), "--port", str(port)]
    command += ["--grpc-port", str(port + 1)]
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}  # its own code
    with serving(command, f"{url}/v2/models/model/ready", log, environment | threads):
        yield url
    log.unlink()
    config.unlink()


def measure(way: str, url: str, options: argparse.Namespace) -> Measured:
    """Ask a server for one window with each number of users."""
    plans = [
        Plan(url, "model", num_users=users, duration_s=options.duration, warmup_s=options.warmup)
        for users in options.users
    ]
    results = [run_headless(plan) for plan in plans]
    if any(result.num_failures for result in results):
        raise SystemExit(f"{way}: requests failed; see its log")
    return Measured(
        way,
        {users: round(result.rps, 1) for users, result in zip(options.users, results, strict=True)},
        {users: round(result.p50_ms or 0, 2) for users, result in zip(options.users, results, strict=True)},
    )


def _write(runs: Sequence[Measured], ways: Sequence[Way], folder: Path, options: argparse.Namespace) -> None:
    found = {"command": ["python", *sys.argv], "machine": machine(), "runs": [asdict(run) for run in runs]}
    name = "choices-" + options.path.split(":")[-1].rstrip("/").split("/")[-1]
    (folder / f"{name}.json").write_text(json.dumps(found, indent=1) + "\n")
    (folder / f"{name}.md").write_text(_markdown(runs, ways, options.users) + "\n")


def _markdown(runs: Sequence[Measured], ways: Sequence[Way], users: Sequence[int]) -> str:
    """Return medians of each way, and of its ratios to the first way within each round."""
    rows = []
    first = [run for run in runs if run.way == ways[0].name]
    for way in ways:
        own = [run for run in runs if run.way == way.name]
        if not own:
            continue
        cells = [way.name]
        for number in users:
            ratios = [mine.rps[number] / other.rps[number] for mine, other in zip(own, first, strict=False)]
            cells.append(f"{statistics.median(run.rps[number] for run in own):,.0f}")
            cells.append(f"{statistics.median(ratios):.2f}" if ratios else "")
            cells.append(f"{statistics.median(run.p50_ms[number] for run in own):.1f}")
        rows.append(cells)
    header = [""]
    for number in users:
        header += [f"requests/s, {number} users", f"relative to {ways[0].name}", "p50 ms"]
    return markdown_table(header, rows)


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("path", help="a checkpoint: a directory, or zoo:NAME")
    parser.add_argument("--int8", help="the same checkpoint, quantised by fewshard quantize")
    parser.add_argument("--before", type=Path, help="another checkout with its .venv, whose default is run")
    parser.add_argument("--ways", nargs="+", help="only these, as auto, bf16x2 (format and threads), int8")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--users", type=int, nargs="+", default=[1, 64])
    parser.add_argument("--duration", type=float, default=3.0, help="seconds a run (default: %(default)s)")
    parser.add_argument("--warmup", type=float, default=0.7, help="seconds before it (default: %(default)s)")
    parser.add_argument("--port", type=int, default=8124)
    parser.add_argument("--out", type=Path, help="default: docs/results/cpu/ and this CPU's name")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
