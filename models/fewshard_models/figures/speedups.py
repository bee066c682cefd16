"""Promised and measured speed-ups, from a measured Table II. Called by `fewshard figures`."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from fewshard_models.errors import DataError
from fewshard_models.figures.style import BLUE, GREY, ORANGE, figure, save

NAME = "speedups"
BATCHES = (1, 64)


@dataclass(frozen=True, slots=True)
class System:
    """One row of the table, compared with the dense model of the same task.

    promised: the dense model's MACs divided by its own.
    realised: measured speed-up by batch size.
    points: accuracy minus the dense model's, in percentage points.
    """

    name: str
    promised: float
    realised: dict[int, float]
    points: float


def read_systems(file: Path) -> list[System]:
    """The systems with fewer MACs than their dense model. Raises DataError that names the file."""
    try:
        rows = json.loads(file.read_text(encoding="utf-8"))["rows"]
        dense = {_task(row): row for row in rows if row["kind"] == "dense" and row["macs_share"] is None}
        systems = [_system(row, dense[_task(row)]) for row in rows if row["macs_share"]]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{file} is no result of `fewshard table2`: {error!r}; make it again") from error
    if not systems:
        raise DataError(f"{file} has no system beside a dense one; nothing to draw")
    return systems


def _task(row: dict[str, object]) -> str:
    return str(row["system"]).partition("-")[0]


def _system(row: dict[str, object], dense: dict[str, object]) -> System:
    speeds: list[dict[str, float]] = row["speeds"]  # type: ignore[assignment]
    accuracy: tuple[dict[str, float], dict[str, float]] = (row["accuracy"], dense["accuracy"])  # type: ignore[assignment]
    return System(
        name=str(row["system"]),
        promised=1 / float(row["macs_share"]),  # type: ignore[arg-type]
        realised={int(speed["batch"]): speed["speedup"] for speed in speeds if speed["batch"] in BATCHES},
        points=100 * (accuracy[0]["mean"] - accuracy[1]["mean"]),
    )


def draw_speedups(systems: Sequence[System], folder: Path) -> list[Path]:
    """Draw SVG and PNG: for each system the promised factor and the two realised ones."""
    with figure(7.2, 0.62 * len(systems) + 1.0) as drawn:
        axes = drawn.add_subplot()
        series = [("fewer MACs (promised)", GREY, [system.promised for system in systems])]
        for batch, colour in zip(BATCHES, (ORANGE, BLUE), strict=True):
            label = f"faster at a batch of {batch} (measured)"
            series.append((label, colour, [system.realised[batch] for system in systems]))
        for place, (label, colour, values) in enumerate(series):
            at = [index + 0.26 * (place - 1) for index in range(len(systems))]
            axes.barh(at, values, height=0.24, color=colour, label=label)
            for y, value in zip(at, values, strict=True):
                axes.annotate(f"{value:.2f}x", (value, y), (3, 0), textcoords="offset points", va="center")
        names = [f"{system.name}\n{system.points:+.1f} points" for system in systems]
        axes.set_yticks(range(len(systems)), names)
        axes.invert_yaxis()
        axes.grid(visible=False, axis="y")
        axes.axvline(1, color="black", linewidth=0.8)
        axes.set_xlim(0, 1.12 * max(max(values) for _, _, values in series))
        axes.set_xlabel("factor over the dense model of the same task (1 = no gain)")
        drawn.legend(loc="outside upper center", ncols=3)
        return save(drawn, folder, NAME)
