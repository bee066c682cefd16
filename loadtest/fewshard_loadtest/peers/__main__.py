"""`fewshard bench server`, as a separate process: options, environments, checkpoint, rounds, report."""

import argparse
import shlex
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

from fewshard_loadtest.errors import BenchmarkError
from fewshard_loadtest.payloads import load
from fewshard_loadtest.peers import catalogue, checkpoint, environments, rounds, summary
from fewshard_loadtest.peers.machine import num_cores
from fewshard_loadtest.peers.report import Report
from fewshard_loadtest.peers.session import Load, Place
from fewshard_loadtest.run import LoadTestError

PROGRAM = "fewshard bench server"
NUM_CHECKED = 64
COST_S = 5.0
RANDOM_WEIGHTS = "a MiniLM-sized BERT classifier (6 layers of 384) of random weights"


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The options of a command line."""
    parser = argparse.ArgumentParser(
        prog=PROGRAM,
        description="Measure one text classifier served by Fewshard, LitServe, Ray Serve, BentoML and "
        "Infinity, each in an environment of its own, made on first use. It wants a quiet machine; see "
        "docs/benchmarks.md.",
    )
    parser.add_argument("--model", type=Path, metavar="DIR", help="a checkpoint (default: random weights)")
    parser.add_argument(
        "--make-model", type=Path, metavar="ENCODER", help="make --model first, from this BERT encoder"
    )
    parser.add_argument(
        "--peers", type=_names, metavar="A,B", help="only these; `none` for ours and the echo"
    )
    parser.add_argument("--users", type=_numbers(int), default=(1, 8, 64, 256), metavar="1,8,…")
    parser.add_argument(
        "--open",
        type=_numbers(float),
        default=(0.5, 0.8, 1.2),
        metavar="0.5,…",
        help="shares of the capacity",
    )
    parser.add_argument(
        "--duration", type=float, default=10.0, metavar="SECONDS", help="of each run (%(default)s)"
    )
    parser.add_argument(
        "--warmup", type=float, default=3.0, metavar="SECONDS", help="before each (%(default)s)"
    )
    parser.add_argument("--rounds", type=int, default=3, help="(default: %(default)s)")
    parser.add_argument(
        "--tune-duration", type=float, default=8.0, metavar="SECONDS", help="of each grid point; 0: no tuning"
    )
    parser.add_argument(
        "--envs", type=Path, default=environments.DEFAULT_FOLDER, metavar="DIR", help="(%(default)s)"
    )
    parser.add_argument("--port", type=int, default=8123)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--out", type=Path, default=Path("docs/results/cpu"), metavar="DIR", help="(%(default)s)"
    )
    options = parser.parse_args(arguments)
    if options.make_model and not options.model:
        parser.error("--make-model needs --model, the folder to write")
    return options


def _names(text: str) -> list[str]:
    names = [] if text == "none" else text.split(",")
    try:
        catalogue.peers(names)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
    return names


def _numbers(kind: type[int] | type[float]) -> Callable[[str], tuple[float, ...]]:
    def numbers(text: str) -> tuple[float, ...]:
        values = tuple(kind(part) for part in text.split(",") if part)
        if any(value <= 0 for value in values):
            raise argparse.ArgumentTypeError("must be above 0")
        return values

    numbers.__name__ = "list of numbers"
    return numbers


def main() -> int:
    """Measure, write the report and print its paths. Returns 1 if our server failed or was not measured."""
    options = parse()
    try:
        with TemporaryDirectory(prefix="fewshard-bench-") as work:
            report = _measure(options, Path(work))
    except LoadTestError as error:
        print(f"fewshard: error: {error}", file=sys.stderr)
        return 1
    for path in report.write(options.out):
        print(path)
    return (
        1
        if any(row.failed for row in summary.closed_loop(report.found) if rounds.is_ours(row.subject))
        else 0
    )


def _measure(options: argparse.Namespace, work: Path) -> Report:
    command = shlex.join([*PROGRAM.split(), *sys.argv[1:]])
    texts = _texts()
    model = _model(options, work, texts)
    name = RANDOM_WEIGHTS if options.model is None else options.model.name
    servers, bins, missing = _environments(options)
    expected = checkpoint.expected_labels(model, texts[:NUM_CHECKED])
    load = Load(options.users, options.open, options.duration, options.warmup, options.seed)
    place = Place(bins, model, expected, options.port, _logs())

    def keep(known: rounds.Found) -> None:
        Report(command, name, known).write(options.out)

    found = rounds.run(
        place, servers, load, options.rounds, options.tune_duration, num_cores(), missing, after_each=keep
    )
    return Report(command, name, found, _model_ms(found, model, texts))


def _texts() -> list[str]:
    return [*load("texts").items]


def _model(options: argparse.Namespace, work: Path, texts: Sequence[str]) -> Path:
    directory = (options.model or work / "model").resolve()
    if options.model is None or options.make_model:
        checkpoint.make(directory, options.make_model, texts)
    return Path(directory)


def _environments(
    options: argparse.Namespace,
) -> tuple[list[catalogue.Server], dict[str, Path], dict[str, str]]:
    """The installed peers, the folders of their programs, and why the others are missing."""
    servers, bins, missing = [], {}, {}
    for server in catalogue.peers(options.peers):
        try:
            bins[server.name] = environments.environment(server.name, options.envs.expanduser().resolve())
            servers.append(server)
        except BenchmarkError as error:
            missing[server.title] = str(error)
    return servers, bins, missing


def _logs() -> Path:
    """Folder of the servers' logs, kept for inspection after a failure."""
    folder = Path("runs/bench-server").resolve()
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _model_ms(found: rounds.Found, model: Path, texts: Sequence[str]) -> dict[int, float]:
    """CPU milliseconds of tokeniser and model per text, for the batch sizes that our server formed."""
    sizes = [str(round(size)) for size in summary.batch_sizes(found).values()]
    dtypes = {s.dtype for subject, all_ in found.sessions.items() if rounds.is_ours(subject) for s in all_}
    dtype = next(iter(dtypes - {None}), None)
    if not sizes or dtype is None:
        return {}
    return checkpoint.model_cost(model, dtype, COST_S, sizes, texts)


if __name__ == "__main__":
    sys.exit(main())
