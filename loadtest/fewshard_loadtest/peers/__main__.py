"""`fewshard bench server`, as a separate process: options, environments, checkpoint, rounds, report."""

import argparse
import shlex
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

from fewshard_loadtest.errors import BenchmarkError
from fewshard_loadtest.payloads import load
from fewshard_loadtest.peers import catalogue, checkpoint, engines, environments, rounds, summary
from fewshard_loadtest.peers.launch import Server
from fewshard_loadtest.peers.machine import cpu_slug, num_cores
from fewshard_loadtest.peers.report import Report
from fewshard_loadtest.peers.session import Load, Place
from fewshard_loadtest.run import LoadTestError

PROGRAM = "fewshard bench server"
COST_S = 5.0
RESULTS = Path("docs/results/cpu")
QUICK = {
    "users": (1, 64),
    "open": (),
    "duration": 3.0,
    "warmup": 1.0,
    "rounds": 1,
    "tune_duration": 2.0,
}
"""What --quick makes of the defaults; options that are given still count."""
RANDOM_WEIGHTS = "a MiniLM-sized BERT classifier (6 layers of 384) of random weights"


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The options of a command line."""
    parser = argparse.ArgumentParser(
        prog=PROGRAM,
        description="Measure one text classifier served by Fewshard, LitServe, Ray Serve, BentoML, Infinity "
        "and mosec, over torch, OpenVINO and ONNX Runtime, in environments that are made on first use. It "
        "wants a quiet machine; see docs/benchmarks.md.",
    )
    parser.add_argument(
        "--quick", action="store_true", help="one short round, 1 and 64 users, a grid of few points"
    )
    parser.add_argument("--model", type=Path, metavar="DIR", help="a checkpoint (default: random weights)")
    parser.add_argument(
        "--make-model", type=Path, metavar="ENCODER", help="make --model first, from this BERT encoder"
    )
    parser.add_argument(
        "--int8",
        type=Path,
        metavar="DIR",
        help="the same in eight bits, from `fewshard quantize`: one more row",
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
        "--out", type=Path, metavar="DIR", default=RESULTS / cpu_slug(), help="(here %(default)s)"
    )
    parser.set_defaults(**(QUICK if "--quick" in _given(arguments) else {}))
    options = parser.parse_args(arguments)
    if options.make_model and not options.model:
        parser.error("--make-model needs --model, the folder to write")
    if options.int8 and not options.model:
        parser.error("--int8 needs --model, the checkpoint that it was made from")
    if options.int8 and not (options.int8 / "config.json").is_file():
        parser.error(f"--int8: {options.int8} is no checkpoint; `fewshard quantize` makes one")
    return options


def _given(arguments: Sequence[str] | None) -> Sequence[str]:
    return sys.argv[1:] if arguments is None else arguments


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
    payload = load("texts")
    texts = [*payload.items]
    model = _model(options, work, texts)
    name = RANDOM_WEIGHTS if options.model is None else options.model.name
    envs = options.envs.expanduser().resolve()
    servers, bins, missing = _environments(options.peers, envs)
    # A head of random weights has no accuracy.
    truths = payload.labels if options.model and not options.make_model else ()
    expected = checkpoint.expected_labels(model, texts, truths)
    of_fp32 = engines.accuracy(expected, [one.label for one in expected])
    found = rounds.Found(missing=missing, of_fp32=of_fp32)
    exports = _try_engines(servers, bins, model, expected, envs, found) if options.tune_duration else None
    load_ = Load(options.users, options.open, options.duration, options.warmup, options.seed)
    place = Place(
        bins, model, expected, options.port, _logs(), exports, options.int8 and options.int8.resolve()
    )
    size = rounds.Work(options.rounds, options.tune_duration, options.quick, num_cores())

    def keep(known: rounds.Found) -> None:
        Report(command, name, known).write(options.out)

    rounds.run(place, servers, load_, size, found, after_each=keep)
    return Report(command, name, found, _model_ms(found, model, texts))


def _model(options: argparse.Namespace, work: Path, texts: Sequence[str]) -> Path:
    directory = (options.model or work / "model").resolve()
    if options.model is None or options.make_model:
        checkpoint.make(directory, options.make_model, texts)
    return Path(directory)


def _environments(
    names: list[str] | None, envs: Path
) -> tuple[list[Server], dict[str, Path], dict[str, str]]:
    """The installed peers, the folders of their environments' programs, and why the others are missing."""
    servers: list[Server] = []
    bins: dict[str, Path] = {}
    missing: dict[str, str] = {}
    for server in catalogue.peers(names):
        name = server.environment_name
        try:
            bins[name] = bins.get(name) or environments.environment(name, envs)
            servers.append(server)
        except BenchmarkError as error:
            missing[server.title] = str(error)
    return servers, bins, missing


def _try_engines(
    servers: list[Server],
    bins: dict[str, Path],
    model: Path,
    expected: Sequence[checkpoint.Expected],
    envs: Path,
    found: rounds.Found,
) -> Path | None:
    """Try the engines that the servers need; removes servers whose engine cannot be had, and says why."""
    threads, exports, tried_with = max(num_cores() // 2, 1), None, None
    for engine in dict.fromkeys(server.engine for server in servers):
        try:
            if engine != "torch":
                tried_with = bins[engines.ENVIRONMENT] = environments.environment(engines.ENVIRONMENT, envs)
                exports = engines.prepared(tried_with, model, envs)
            trials = engines.tried(engine, tried_with, model, exports, expected, threads)
            found.trials.extend(trials)
        except BenchmarkError as error:
            for server in [server for server in servers if server.engine == engine and server.is_assembled]:
                servers.remove(server)
                found.missing[server.title] = str(error)
    return exports


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
