"""`fewshard figures`: the figures that go with the table. Each subject measures or reads, then draws."""

import argparse
import shlex
import sys
from pathlib import Path
from typing import Any

from fewshard_serve.commands import recipe_options


def register(subparsers: Any) -> None:
    """Add the command and its subjects; `cli` calls it."""
    parser = subparsers.add_parser("figures", help="draw the figures beside the table; needs the extra plots")
    subjects = parser.add_subparsers(title="what to draw", metavar="SUBJECT", required=True)
    sweep = _subject(subjects, "sweep", _sweep, "accuracy against MACs: ten short CIFAR-10 runs; resumable")
    recipe_options.add(sweep)
    _subject(subjects, "times", _times, "inference time of four CNN sizes, dense and cut; wants quiet")
    patterns = _subject(subjects, "patterns", _patterns, "kept weights or channels of pruned CNNs")
    patterns.add_argument("paths", metavar="PATH", nargs="+", help="zoo:<name> or a checkpoint's directory")
    patterns.add_argument("--dense", help="the CNN that cut ones are compared with")
    curves = _subject(subjects, "curves", _curves, "loss, accuracy, processor use and energy of runs")
    curves.add_argument("runs", metavar="RUN", nargs="+", type=Path, help="a phase's folder with curve.jsonl")
    speedups = _subject(subjects, "speedups", _speedups, "what fewer MACs promise and what arrives")
    speedups.add_argument("table", metavar="TABLE2.json", type=Path, help="what `fewshard table2` wrote")
    curves.add_argument("--name", default="curves", help="the files' name, without ending")


def _subject(subjects: Any, name: str, run: Any, text: str) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = subjects.add_parser(
        name, help=text, description=f"{text[0].upper()}{text[1:]}."
    )
    parser.add_argument("--out", type=Path, help="folder of the files (default: docs/results/DEVICE)")
    parser.set_defaults(run=run)
    return parser


def _out(args: argparse.Namespace) -> Path:
    from fewshard_models.devices import choose_device

    found: Path = args.out or Path("docs/results") / choose_device().name
    return found


def _about() -> dict[str, Any]:
    from fewshard_models.bench.report import machine
    from fewshard_models.devices import choose_device

    return {"command": shlex.join(["fewshard", *sys.argv[1:]]), "machine": machine(choose_device().name)}


def _sweep(args: argparse.Namespace) -> int:
    """Train those of the ten networks that are missing, write the points and draw them; returns 0."""
    from fewshard_models.figures.sweep import Sweep, run
    from fewshard_models.figures.tradeoff import draw_tradeoff, write_points

    points = run(Sweep(recipe_options.workspace(args)), _say)
    return _print(write_points(points, _about(), _out(args)), *draw_tradeoff(points, _out(args)))


def _times(args: argparse.Namespace) -> int:
    """Measure four sizes dense and cut, write the times, draw them; returns 0."""
    from fewshard_models.devices import choose_device
    from fewshard_models.evaluation.timing import dtype_name
    from fewshard_models.figures.cnn_times import draw_times, measure_cnns, write_times

    times = measure_cnns(choose_device().name, dtype_name())
    about = {**_about(), "dtype": dtype_name(), "weights": "random; time does not depend on them"}
    return _print(write_times(times, about, _out(args)), *draw_times(times, _out(args)))


def _patterns(args: argparse.Namespace) -> int:
    """Draw each network that is masked, or narrower than the dense one; returns 0."""
    from fewshard_models.checkpoint import resolve
    from fewshard_models.figures.patterns import draw_pattern, load_cnn

    dense = None if args.dense is None else load_cnn(resolve(args.dense))
    for path in args.paths:
        title = path.rpartition(":")[2].rstrip("/").rpartition("/")[2]
        drawn = draw_pattern(load_cnn(resolve(path)), dense, title, _out(args))
        _print(*drawn)
        if not drawn:
            _say(f"{path} has no mask and is as wide as the dense CNN (give one with --dense); nothing drawn")
    return 0


def _curves(args: argparse.Namespace) -> int:
    """Draw the curves of all runs into one figure; returns 0."""
    from fewshard_models.figures.curves import draw_curves
    from fewshard_models.recipes.training_curve import CURVE_FILE, load_curve

    runs = {run.resolve().name: load_curve(run / CURVE_FILE) for run in args.runs}
    return _print(*draw_curves(runs, _out(args), args.name))


def _speedups(args: argparse.Namespace) -> int:
    """Draw the promised and the realised speed-ups of a measured table; returns 0."""
    from fewshard_models.figures.speedups import draw_speedups, read_systems

    return _print(*draw_speedups(read_systems(args.table), _out(args)))


def _print(*paths: Path) -> int:
    for path in paths:
        print(path)
    return 0


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
