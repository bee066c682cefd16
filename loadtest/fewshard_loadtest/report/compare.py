"""Compares two reports and checks the changes against a budget. Called by `fewshard report compare`."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from fewshard_core.yaml_reader import Section, read_yaml
from fewshard_loadtest.errors import ScenarioError
from fewshard_loadtest.report.format import count

Share = Annotated[float, Field(ge=0)]


class Limits(Section):
    """How much worse each figure may become, relative to its old value; `accuracy` in percentage points."""

    sustained: Share | None = None
    saturated: Share | None = None
    alone_p50: Share | None = None
    alone_p99: Share | None = None
    accuracy: Share | None = None
    cpu: Share | None = None
    memory: Share | None = None
    cost: Share | None = None


class Budget(Section):
    """Limits for every model (`default`), and limits that replace them for individual `models`."""

    default: Limits = Limits(
        sustained=0.1, saturated=0.1, alone_p50=0.2, accuracy=0.5, cpu=0.15, memory=0.15, cost=0.12
    )
    models: dict[str, Limits] = Field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class _Figure:
    """How to read and judge a figure of a model in report.json.

    title: name of the figure.
    read: reads its value, or None.
    worse: sign of a change for the worse.
    in_points: whether changes are absolute rather than relative.
    """

    title: str
    read: Callable[[dict[str, Any]], float | None]
    worse: int
    in_points: bool = False


def _at(*way: str) -> Callable[[dict[str, Any]], float | None]:
    def read_it(model: dict[str, Any]) -> float | None:
        value: Any = model
        for step in way:
            value = value.get(step) if isinstance(value, dict) else None
        return None if value is None else float(value)

    return read_it


def _accuracy(model: dict[str, Any]) -> float | None:
    share = (model.get("accuracy") or {}).get("share")
    return 100 * share["right"] / share["num"] if share and share["num"] else None


FIGURES = {
    "sustained": _Figure("predictions/s within the SLO", _at("sustained", "mean"), -1),
    "saturated": _Figure("predictions/s saturated", _at("saturated", "mean"), -1),
    "alone_p50": _Figure("p50 alone, ms", _at("alone", "p50_ms"), 1),
    "alone_p99": _Figure("p99 alone, ms", _at("alone", "p99_ms"), 1),
    "accuracy": _Figure("accuracy, %", _accuracy, -1, in_points=True),
    "cpu": _Figure("CPU ms a prediction", _at("cpu_ms"), 1),
    "memory": _Figure("server memory, MiB", _at("memory_mib"), 1),
    "cost": _Figure("cost of a million", _at("money", "per_million"), 1),
}


@dataclass(frozen=True, slots=True)
class Change:
    """Change of one figure of one model.

    before, after: the values; None if there is none.
    change, limit: the change and its limit as text; `limit` is empty without one.
    is_broken: whether the change exceeds the limit.
    """

    model: str
    title: str
    before: float | None
    after: float | None
    change: str
    limit: str
    is_broken: bool


@dataclass(frozen=True, slots=True)
class Outcome:
    """All changes between two reports."""

    changes: tuple[Change, ...]

    @property
    def broken(self) -> list[Change]:
        return [change for change in self.changes if change.is_broken]

    def as_markdown(self) -> str:
        """The verdict and a table of all changes."""
        broken = self.broken
        names = ", ".join(f"{change.model}: {change.title}" for change in broken)
        first = f"**Budget broken: {names}.**" if broken else "**Within budget.**"
        head = f"| model | figure | before | after | change | limit | |\n|{' --- |' * 7}"
        rows = [
            f"| {c.model} | {c.title} | {count(c.before)} | {count(c.after)} | {c.change} | {c.limit} | "
            f"{'broken' if c.is_broken else 'ok'} |"
            for c in self.changes
        ]
        return "\n".join([first, "", head, *rows])


def compare(before: Path, after: Path, budget_file: Path | None = None) -> Outcome:
    """Compare two reports: folders or report.json files.

    A missing model, or a missing figure that has a limit, breaks the budget. Raises `ScenarioError` if a
    file cannot be read or the reports cannot be compared.
    """
    budget = read_yaml(budget_file, ScenarioError).parse(Budget) if budget_file else Budget()
    old, new = _report(before), _report(after)
    if not set(old["models"]) & set(new["models"]):
        raise ScenarioError(f"{before} and {after} have no model in common")
    if unknown := set(budget.models) - set(old["models"]):
        raise ScenarioError(f"{budget_file}: the model {sorted(unknown)[0]!r} is not in {before}")
    changes = []
    for name, model in old["models"].items():
        limits = budget.models.get(name, budget.default)
        for key, figure in FIGURES.items():
            change = _change(name, figure, model, new["models"].get(name, {}), getattr(limits, key))
            changes += [change] if change is not None else []
    return Outcome(tuple(changes))


def _report(path: Path) -> dict[str, Any]:
    file = path / "report.json" if path.is_dir() else path
    try:
        report: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        report["models"].items()
    except (OSError, ValueError, KeyError, AttributeError, TypeError):
        raise ScenarioError(f"{file} is not a report: name a folder of `fewshard loadtest`") from None
    return report


def _change(
    name: str, figure: _Figure, old: dict[str, Any], new: dict[str, Any], limit: float | None
) -> Change | None:
    before, after = figure.read(old), figure.read(new)
    if before is None:
        return None
    shown = "" if limit is None else _limit(figure, limit)
    if after is None:
        return Change(name, figure.title, before, None, "gone", shown, limit is not None)
    worse = figure.worse * (after - before) if figure.in_points else figure.worse * (after / before - 1)
    signed = figure.worse * worse
    change = f"{signed:+.2f} points" if figure.in_points else f"{100 * signed:+.1f} %"
    return Change(name, figure.title, before, after, change, shown, limit is not None and worse > limit)


def _limit(figure: _Figure, limit: float) -> str:
    sign = "+" if figure.worse > 0 else "−"
    return f"{sign}{limit:g} points" if figure.in_points else f"{sign}{100 * limit:g} %"
