"""Writes a report in all formats: HTML, JSON, CSV and Markdown.

Called by `commands`, after a load test or for an existing folder.
"""

import csv
import dataclasses
import io
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fewshard_loadtest.report import tables
from fewshard_loadtest.report.figures import Figures, ModelFigures, figures_of
from fewshard_loadtest.report.page import page
from fewshard_loadtest.report.verdict import verdicts, warnings
from fewshard_loadtest.results_store import Run


def as_csv(figures: Figures) -> str:
    """One line per model and one column per figure, with unformatted numbers."""
    rows = [_flat(model) for model in figures.models]
    file = io.StringIO()
    writer = csv.DictWriter(file, [*(rows[0] if rows else {})], lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return file.getvalue()


def _flat(model: ModelFigures) -> dict[str, object]:
    """The columns of a model; None becomes an empty cell."""
    real, cost, joules = model.realised, model.money, model.energy
    share = model.accuracy.share if model.accuracy else None
    return {
        "model": model.name,
        "task": model.task,
        "kind": model.kind,
        "dense": model.dense,
        "sustained_per_s": model.sustained.mean if model.sustained else None,
        "sustained_low": model.sustained.low if model.sustained else None,
        "sustained_high": model.sustained.high if model.sustained else None,
        "saturated_per_s": model.saturated.mean if model.saturated else None,
        "alone_p50_ms": model.alone.p50_ms if model.alone else None,
        "alone_p99_ms": model.alone.p99_ms if model.alone else None,
        "slo_p50_ms": model.at_slo.p50_ms if model.at_slo else None,
        "slo_p99_ms": model.at_slo.p99_ms if model.at_slo else None,
        "accuracy": share.value if share else None,
        "accuracy_items": share.num if share else None,
        "parameters_total": model.card.get("parameters_total"),
        "parameters_active": model.card.get("parameters_active"),
        "macs": model.card.get("macs"),
        "infer_ms": model.infer_ms,
        "mean_batch": model.mean_batch,
        "cpu_ms": model.cpu_ms,
        "memory_mib": model.memory_mib,
        "joules": joules.joules if joules else None,
        "energy_method": joules.method if joules else None,
        "per_million": cost.per_million if cost else None,
        "fleet_machines": cost.fleet.machines if cost else None,
        "r_model": real.model if real else None,
        "r_server": real.server if real else None,
        "overhead_share": real.overhead_share if real else None,
    }


FORMAT = 1


@dataclass(frozen=True, slots=True)
class Written:
    """The files of a report, and its first sentence."""

    paths: tuple[Path, ...]
    verdict: str


def write_report(run: Run, folder: Path, out: Path | None = None) -> Written:
    """Write report.html, .json, .csv and .md to `out`, by default the run's own `folder`."""
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
    """All figures for JSON, and the result of each run without its samples."""
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
    """A summary for a pull request: verdict, warnings and the main tables."""
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
