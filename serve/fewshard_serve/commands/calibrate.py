"""`fewshard calibrate`: thresholds of a cascade, from a labelled file and a running server."""

import argparse
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fewshard_serve.client import DEFAULT_URL, Client, Input, Prediction, Retry
from fewshard_serve.commands import formatting
from fewshard_serve.errors import ConfigError

if TYPE_CHECKING:
    from fewshard_serve.calibration import Choice, Outcomes, Point

BATCH_SIZE = 64
MAX_STAGES = 4
NUM_ROWS = 12


def register(subparsers: Any) -> None:
    """Add the command; `cli` calls it."""
    parser = subparsers.add_parser(
        "calibrate",
        help="choose the thresholds of a cascade",
        description="Ask each stage of a running server about every item of a held-out file, and choose the "
        "cheapest thresholds with which the cascade is as accurate as wished.",
    )
    parser.add_argument("stages", metavar="MODEL", nargs="+", help="the stages, the cheapest first")
    parser.add_argument(
        "--data",
        type=Path,
        required=True,
        help="lines of `text<TAB>label` (or `image file<TAB>label`) under a header; label: name or number",
    )
    wish = parser.add_mutually_exclusive_group()
    wish.add_argument("--accuracy", type=float, help="the accuracy that is wished, from 0 to 1")
    wish.add_argument(
        "--within",
        type=float,
        default=0.002,
        help="how much the last stage's accuracy may fall (default: %(default)s)",
    )
    parser.add_argument("--costs", help="cost of an item at each stage, as 1,4.5 (default: the cards' MACs)")
    parser.add_argument("--name", default="auto", help="the cascade's name in what is printed")
    parser.add_argument("--url", default=DEFAULT_URL, help="the server (default: %(default)s)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the whole curve there")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="draw it there (needs the extra `plots`)")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Classify, choose and print. Returns 0, or 1 if no thresholds reach the requested accuracy."""
    from fewshard_serve.calibration import choose, curve

    if not 2 <= len(args.stages) <= MAX_STAGES or len(set(args.stages)) < len(args.stages):
        raise ConfigError(f"a cascade has 2 to {MAX_STAGES} different stages, the cheapest first")
    with Client(args.url, retry=Retry(on_connect=False)) as client:
        outcomes = _outcomes(client, args)
    choice = choose(outcomes, args.accuracy, args.within)
    points = curve(outcomes)
    print(_report(args, outcomes, points, choice))
    if args.json is not None:
        args.json.write_text(json.dumps(_as_json(args, outcomes, points, choice), indent=2) + "\n")
    if args.plot is not None:
        _plot(args, outcomes, points, choice)
    return 0 if choice is not None else 1


@dataclass(frozen=True, slots=True)
class _Row:
    given: str
    label: str
    number: int


def _outcomes(client: Client, args: argparse.Namespace) -> "Outcomes":
    import numpy as np

    from fewshard_serve.calibration import Outcomes
    from fewshard_serve.protocol.tasks import TASKS

    configs = [client.config(stage) for stage in args.stages]
    _check(args.stages, configs)
    labels = configs[-1]["labels"]
    rows = read_rows(args.data, labels)
    task = TASKS.get(configs[-1]["task"])
    inputs: list[Input] = [task.from_table(row.given, args.data.parent) for row in rows]
    answers_by_stage = [list(client.classify_all(stage, inputs, BATCH_SIZE)) for stage in args.stages]
    confidence = np.array([[_confidence(each) for each in answers] for answers in answers_by_stage])
    pairs = [zip(answers, rows, strict=True) for answers in answers_by_stage]
    is_right = np.array([[each.label == row.label for each, row in stage] for stage in pairs])
    return Outcomes(confidence, is_right, np.array(_costs(args, configs)))


def _confidence(prediction: Prediction) -> float:
    return max(prediction.score, 1 - prediction.score) if len(prediction.labels) == 1 else prediction.score


def _check(stages: Sequence[str], configs: Sequence[dict[str, Any]]) -> None:
    for stage, config in zip(stages, configs, strict=True):
        if config["problem_type"] != "single_label_classification" or len(config["labels"]) < 2:
            raise ConfigError(f"{stage} does not choose one label of several, which accuracy needs")
        if sorted(config["labels"]) != sorted(configs[-1]["labels"]):
            raise ConfigError(f"{stage} and {stages[-1]} have different labels")


def _costs(args: argparse.Namespace, configs: Sequence[dict[str, Any]]) -> list[float]:
    if args.costs is None:
        costs = [config["card"].get("macs") for config in configs]
        if not all(costs):
            raise ConfigError("a stage's card does not say its MACs; give the costs with --costs")
        return [float(cost) for cost in costs]
    try:
        costs = [float(cost) for cost in args.costs.split(",")]
    except ValueError:
        raise ConfigError(f"--costs must be numbers with commas between them, not {args.costs!r}") from None
    if len(costs) != len(configs) or min(costs) <= 0:
        raise ConfigError(f"--costs must have {len(configs)} numbers above 0")
    return costs


def read_rows(path: Path, labels: Sequence[str]) -> list[_Row]:
    """Read the items of a file; a label is a name or its number. Raises `ConfigError` with the line."""
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} cannot be read: {error}") from None
    rows = [_row(path, n, line, labels) for n, line in enumerate(lines[1:], start=2) if line.strip()]
    if not rows:
        raise ConfigError(f"{path} has no rows under its header")
    return rows


def _row(path: Path, number: int, line: str, labels: Sequence[str]) -> _Row:
    given, tab, label = line.rstrip("\r").rpartition("\t")
    if not tab or "\t" in given:
        raise ConfigError(f"{path}, line {number}: expected `item<TAB>label`")
    if label in labels:
        return _Row(given, label, number)
    if label.isascii() and label.isdigit() and int(label) < len(labels):
        return _Row(given, labels[int(label)], number)
    raise ConfigError(f"{path}, line {number}: no label {label!r}; there are: {', '.join(labels)}")


def _report(
    args: argparse.Namespace, outcomes: "Outcomes", points: Sequence["Point"], choice: "Choice | None"
) -> str:
    from fewshard_serve.calibration import standard_error

    header = ("accept above", "accuracy", "cost", *(f"by {stage}" for stage in args.stages))
    shown = _thinned(points, choice)
    table = formatting.table(header, [_cells(outcomes, point) for point in shown])
    last = float(outcomes.is_right[-1].mean())
    error = standard_error(last, outcomes.num_items)
    lines = [
        f"{outcomes.num_items} items; {args.stages[-1]} alone: {last:.4f} (one standard error {error:.4f})",
        "cost: of an item, as a share of the last stage's",
        "",
        table,
        "",
    ]
    return "\n".join([*lines, *_chosen(args, outcomes, choice)])


def _chosen(args: argparse.Namespace, outcomes: "Outcomes", choice: "Choice | None") -> list[str]:
    if choice is None:
        return [f"no thresholds reach an accuracy of {args.accuracy:.4f}"]
    accuracy, cost = choice.held_out
    thresholds = [round(each, 6) for each in choice.point.accept_above]
    above = json.dumps(thresholds[0] if len(thresholds) == 1 else thresholds)
    return [
        f"the cheapest with at least {choice.wished:.4f}: accuracy {choice.point.accuracy:.4f} "
        f"at {_share(outcomes, choice.point.cost)} of the cost",
        f"on items it was not chosen on (5 folds): accuracy {accuracy:.4f} at {_share(outcomes, cost)}",
        "",
        "cascades:",
        f"  - {{name: {args.name}, stages: [{', '.join(args.stages)}], accept_above: {above}}}",
    ]


def _cells(outcomes: "Outcomes", point: "Point") -> tuple[str, ...]:
    above = ", ".join(f"{each:.4f}" for each in point.accept_above)
    shares = (f"{100 * share:.1f} %" for share in point.shares)
    return (above, f"{point.accuracy:.4f}", _share(outcomes, point.cost), *shares)


def _share(outcomes: "Outcomes", cost: float) -> str:
    return f"{100 * cost / outcomes.costs[-1]:.1f} %"


def _thinned(points: Sequence["Point"], choice: "Choice | None") -> list["Point"]:
    """Return about a dozen points of the curve, with its ends and the chosen one."""
    step = max(1, (len(points) - 1) // NUM_ROWS)
    kept = {*range(0, len(points), step), len(points) - 1}
    if choice is not None:
        kept.add(points.index(choice.point))
    return [points[n] for n in sorted(kept)]


def _as_json(
    args: argparse.Namespace, outcomes: "Outcomes", points: Sequence["Point"], choice: "Choice | None"
) -> dict[str, Any]:
    return {
        "stages": args.stages,
        "num_items": outcomes.num_items,
        "costs": outcomes.costs.tolist(),
        "accuracy": outcomes.is_right.mean(axis=1).tolist(),
        "curve": [asdict(point) for point in points],
        "choice": None if choice is None else asdict(choice),
    }


def _plot(
    args: argparse.Namespace, outcomes: "Outcomes", points: Sequence["Point"], choice: "Choice | None"
) -> None:
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise ConfigError("--plot needs matplotlib: pip install 'fewshard[plots]'") from None
    figure = Figure(figsize=(6.4, 4.2), layout="constrained")
    axes = figure.add_subplot()
    dearest = outcomes.costs[-1]
    axes.step([p.cost / dearest for p in points], [p.accuracy for p in points], where="post", label="cascade")
    for stage, cost, right in zip(args.stages, outcomes.costs, outcomes.is_right, strict=True):
        axes.plot(cost / dearest, right.mean(), "o", label=f"{stage} alone")
    if choice is not None:
        axes.plot(choice.point.cost / dearest, choice.point.accuracy, "*", markersize=12, label="chosen")
    axes.set(xlabel=f"cost of an item ({args.stages[-1]} alone = 1)", ylabel="accuracy")
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(args.plot, dpi=150)
