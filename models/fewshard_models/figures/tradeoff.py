"""Figure 2: accuracy against MACs, dense and sparse. Called by `fewshard figures` and `fewshard table2`."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from fewshard_models.errors import DataError
from fewshard_models.figures.style import COLOURS, MARKERS, figure, millions, save

NAME = "figure2"


@dataclass(frozen=True, slots=True)
class Point:
    """One trained network.

    accuracy: share of `num_items` that are right.
    epochs: total epochs of training.
    """

    name: str
    kind: str
    macs: int
    accuracy: float
    num_items: int
    epochs: int
    note: str


def write_points(points: Sequence[Point], about: dict[str, Any], folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / f"{NAME}.json"
    fields = {**about, "points": [asdict(point) for point in points]}
    file.write_text(json.dumps(fields, indent=1) + "\n", encoding="utf-8")
    return file


def read_points(file: Path) -> list[Point]:
    """The points in `file`. Raises DataError that names the file if it cannot be used."""
    try:
        points = [Point(**each) for each in json.loads(file.read_text(encoding="utf-8"))["points"]]
    except json.JSONDecodeError as error:
        raise DataError(f"{file}, line {error.lineno}: {error.msg}; make it again") from error
    except (OSError, TypeError, KeyError) as error:
        raise DataError(f"{file} cannot be used: {error!r}; make it again") from error
    if not points:
        raise DataError(f"{file} holds no points; make it again")
    return points


def draw_tradeoff(points: Sequence[Point], folder: Path) -> list[Path]:
    """Draw SVG and PNG: a line per kind, with error bars of one standard error over the test items."""
    with figure() as drawn:
        axes = drawn.add_subplot()
        for index, kind in enumerate(dict.fromkeys(point.kind for point in points)):
            own = sorted((point for point in points if point.kind == kind), key=lambda point: point.macs)
            errors = [100 * (p.accuracy * (1 - p.accuracy) / p.num_items) ** 0.5 for p in own]
            line = ("-", "--", ":")[index % 3]
            look: dict[str, Any] = {"color": COLOURS[index], "marker": MARKERS[index], "linestyle": line}
            x, y = [point.macs for point in own], [100 * point.accuracy for point in own]
            axes.errorbar(x, y, yerr=errors, capsize=2.5, markersize=5.5, label=_label(own), **look)
        axes.set_xscale("log")
        _ticks(axes, [point.macs for point in points])
        axes.set_xlabel("MACs an image (multiply-accumulates; FLOPs are twice as many)")
        axes.set_ylabel("test accuracy, %")
        axes.set_title("CIFAR-10: accuracy against MACs, short runs")
        axes.legend(loc="lower right")
        return save(drawn, folder, NAME)


def _label(points: Sequence[Point]) -> str:
    epochs = sorted({point.epochs for point in points})
    return f"{points[0].kind} ({' or '.join(map(str, epochs))} epochs in all)"


def _ticks(axes: Any, macs: Sequence[int]) -> None:
    """Set ticks at round numbers of MACs that are far enough apart to be readable."""
    steps = [digit * 10**power for power in range(5, 12) for digit in (1, 2, 5)]
    shown = [step for step in steps if 0.8 * min(macs) <= step <= 1.25 * max(macs)]
    axes.set_xticks(shown, [millions(step) for step in shown])
    axes.set_xticks([], minor=True)
