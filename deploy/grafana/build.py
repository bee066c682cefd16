"""The Grafana dashboards, from `panels.py`: `python deploy/grafana/build.py` writes dashboards/*.json.

A test checks that the files are those of this source, and runs every query against a scraped server.
"""

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

from panels import DASHBOARDS, Panel

FOLDER = Path(__file__).parent / "dashboards"
SOURCE = {"type": "prometheus", "uid": "${datasource}"}
INSTANT = ("table", "bargauge", "barchart", "matrix")


def dashboard(name: str, title: str, panels: Sequence[Panel]) -> dict[str, Any]:
    """One dashboard as Grafana imports it."""
    placed, x, y = [], 0, 0
    for number, panel in enumerate(panels, 1):
        if x + panel.width > 24:
            x, y = 0, y + 8
        placed.append(panel_json(panel, number, {"x": x, "y": y, "w": panel.width, "h": 8}))
        x += panel.width
    return {
        "uid": f"fewshard-{name}",
        "title": title,
        "tags": ["fewshard"],
        "schemaVersion": 39,
        "editable": True,
        "refresh": "10s",
        "time": {"from": "now-30m", "to": "now"},
        "templating": {"list": [data_source_variable(), model_variable()]},
        "links": [{"type": "dashboards", "tags": ["fewshard"], "title": "Fewshard", "keepTime": True}],
        "panels": placed,
    }


def data_source_variable() -> dict[str, Any]:
    return {"name": "datasource", "label": "Prometheus", "type": "datasource", "query": "prometheus"}


def model_variable() -> dict[str, Any]:
    return {
        "name": "model",
        "label": "Model",
        "type": "query",
        "datasource": SOURCE,
        "query": "label_values(fewshard_model_info, model)",
        "refresh": 2,
        "multi": True,
        "includeAll": True,
        "allValue": ".*",
        "current": {"text": "All", "value": "$__all"},
    }


def panel_json(panel: Panel, number: int, position: dict[str, int]) -> dict[str, Any]:
    return {
        "id": number,
        "title": panel.title,
        "type": "table" if panel.kind == "matrix" else panel.kind,
        "description": panel.help,
        "datasource": SOURCE,
        "gridPos": position,
        "fieldConfig": {"defaults": {"unit": panel.unit, **defaults(panel)}, "overrides": []},
        "targets": [target(panel, at, *query) for at, query in enumerate(panel.queries)],
        **looks(panel),
    }


def target(panel: Panel, at: int, query: str, legend: str) -> dict[str, Any]:
    is_instant = panel.kind in INSTANT
    return {
        "refId": "ABCDEFGH"[at],
        "datasource": SOURCE,
        "expr": query,
        "legendFormat": legend or "__auto",
        "instant": is_instant,
        "range": not is_instant,
        "format": {"table": "table", "matrix": "table", "heatmap": "heatmap"}.get(panel.kind, "time_series"),
    }


def defaults(panel: Panel) -> dict[str, Any]:
    if panel.kind == "matrix":
        cell = {"cellOptions": {"type": "color-background", "mode": "gradient"}}
        return {"custom": cell, "decimals": 1, "color": {"mode": "continuous-BlPu"}}
    return {"min": 0} if panel.unit == "percentunit" else {}


def looks(panel: Panel) -> dict[str, Any]:
    if panel.kind == "matrix":
        row, column = panel.options["row"], panel.options["column"]
        fields = {"rowField": row, "columnField": column, "valueField": "Value"}
        return {"transformations": [{"id": "groupingToMatrix", "options": fields}]}
    if panel.kind == "heatmap":
        return {"options": {"calculate": False, "yAxis": {"unit": "short"}}}
    if panel.kind == "timeseries":
        legend = {"displayMode": "list", "placement": "bottom"}
        return {"options": {"legend": legend, "tooltip": {"mode": "multi"}}}
    return {}


def files() -> dict[str, str]:
    """The text of each file by its name."""
    return {
        f"{name}.json": json.dumps(dashboard(name, title, panels), indent=1) + "\n"
        for name, (title, panels) in DASHBOARDS.items()
    }


if __name__ == "__main__":
    FOLDER.mkdir(exist_ok=True)
    for name, text in files().items():
        (FOLDER / name).write_text(text, encoding="utf-8")
