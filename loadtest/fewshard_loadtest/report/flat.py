"""The report as CSV: one line a model, one column a figure."""

import csv
import io

from fewshard_loadtest.report.figures import Figures, ModelFigures


def as_csv(figures: Figures) -> str:
    """One line a model, one column a figure, numbers as they are."""
    rows = [_flat(model) for model in figures.models]
    file = io.StringIO()
    writer = csv.DictWriter(file, [*(rows[0] if rows else {})], lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return file.getvalue()


def _flat(model: ModelFigures) -> dict[str, object]:
    """None is an empty cell."""
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
