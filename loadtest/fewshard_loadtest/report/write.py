"""Writes a report in all its forms; `commands` calls it, with or without a new load test before."""

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fewshard_loadtest.report import tables
from fewshard_loadtest.report.figures import Figures, figures_of
from fewshard_loadtest.report.flat import as_csv
from fewshard_loadtest.report.page import page
from fewshard_loadtest.report.verdict import verdicts, warnings
from fewshard_loadtest.rundir import Run

FORMAT = 1


@dataclass(frozen=True, slots=True)
class Written:
    """The files, and the first sentence of the report."""

    paths: tuple[Path, ...]
    verdict: str


def write_report(run: Run, folder: Path, out: Path | None = None) -> Written:
    """report.html, .json, .csv and .md in `out`, or in the run's own `folder`."""
    figures = figures_of(run, folder)
    target = out or folder
    target.mkdir(parents=True, exist_ok=True)
    texts = {
        "report.html": page(figures),
        "report.json": json.dumps(as_dict(figures), indent=1) + "\n",
        "report.csv": as_csv(figures),
        "report.md": as_markdown(figures),
    }
    for name, text in texts.items():
        (target / name).write_text(text, encoding="utf-8")
    sentences = verdicts(figures)
    return Written(tuple(target / name for name in texts), sentences[0] if sentences else "nothing measured")


def as_dict(figures: Figures) -> dict[str, Any]:
    """For JSON: all figures, without the runs they come from."""
    run = figures.run
    return {
        "format": FORMAT,
        "partial": run.partial,
        "verdicts": verdicts(figures),
        "warnings": warnings(figures),
        "command": run.command,
        "machine": run.machine,
        "server": run.server,
        "scenario": run.scenario,
        "price": None if figures.price is None else dataclasses.asdict(figures.price),
        "generator_ceiling_per_s": run.generator_ceiling,
        "models": {model.name: dataclasses.asdict(model) for model in figures.models},
        "runs": [
            {
                "kind": leg.kind,
                "model": leg.model,
                "repeat": leg.repeat,
                "samples": leg.samples_name,
                "is_limited": leg.is_limited,
                "is_kept": leg.is_kept,
                **leg.result.as_dict(),
            }
            for leg in run.legs
        ],
    }


def as_markdown(figures: Figures) -> str:
    """For a pull request: the verdict, what to know, and the tables that decide."""
    run = figures.run
    sentences = verdicts(figures)
    first = sentences[0] if sentences else "Nothing was measured."
    parts = [f"## {run.scenario['name']}: what a prediction costs", f"**{first}**"]
    if run.partial:
        parts.insert(1, f"**Partial: {run.partial}.**")
    bullets = [*sentences[1:], *warnings(figures)]
    parts.append("\n".join(f"- {text}" for text in bullets))
    parts += [tables.as_markdown(table) for table in tables.every_table(figures)[:4]]
    where = f"{run.machine['date']}, {run.machine['cores']} cores of {run.machine['cpu']}"
    parts.append(f"{where}, commit {run.machine['commit']}.\n\n    {run.command}")
    return "\n\n".join(parts) + "\n"
