"""Copies definitions from elsewhere into the chart. `make chart` runs it; a test detects stale copies.

- values.schema.json: values.schema.yaml with the server's own definitions of models, cascades and limits
- files/environment.yaml: the environment of every Ray process, from rayserve/environment.py
- files/rules.yml, files/dashboards/*.json: from deploy/
"""

import json
from pathlib import Path
from typing import Any

import yaml
from ray.serve.schema import DeploymentSchema

from fewshard_serve.config import NAME_PATTERN, FewshardConfig
from fewshard_serve.http.routes import reserved_names
from fewshard_serve.rayserve.environment import ALWAYS, ENABLE_HAPROXY, FOR_WORKERS

HERE = Path(__file__).parent
DEPLOY = HERE.parent / "deploy"
THREADS = "RAY_SERVE_HAPROXY_NBTHREAD"
"""Omitted, because it depends on the machine. The chart has a value for it."""


def chart_files() -> dict[str, str]:
    """Return the text of every generated file, by its path in the chart."""
    dashboards = DEPLOY.glob("grafana/dashboards/*.json")
    copies = {f"files/dashboards/{path.name}": path for path in dashboards}
    copies["files/rules.yml"] = DEPLOY / "prometheus/rules.yml"
    return {
        "values.schema.json": json.dumps(schema(), indent=2) + "\n",
        "files/environment.yaml": yaml.safe_dump(environment()),
        **{name: path.read_text(encoding="utf-8") for name, path in copies.items()},
    }


def environment() -> dict[str, str]:
    """Return the variables that KubeRay's pods need before Ray starts."""
    values = {**ALWAYS, **FOR_WORKERS, ENABLE_HAPROXY: "1"}
    return {key: value for key, value in sorted(values.items()) if key != THREADS}


def schema() -> dict[str, Any]:
    """Return the JSON schema of the chart's values."""
    whole: dict[str, Any] = yaml.safe_load((HERE / "values.schema.yaml").read_text(encoding="utf-8"))
    whole["$defs"] |= FewshardConfig.model_json_schema()["$defs"]
    name = {"type": "string", "pattern": f"^{NAME_PATTERN}$", "not": {"enum": sorted(reserved_names())}}
    for kind in ("ModelConfig", "CascadeConfig"):
        whole["$defs"][kind]["properties"]["name"] |= name
    known = [key for key in DeploymentSchema.model_fields if key != "name"]
    whole["$defs"]["Deployment"] |= {"propertyNames": {"enum": known}}
    return whole


def main() -> None:
    """Write all files, and delete copies whose source no longer exists."""
    files = chart_files()
    for path in (HERE / "fewshard/files").rglob("*"):
        if path.is_file() and path.relative_to(HERE / "fewshard").as_posix() not in files:
            path.unlink()
    for name, text in files.items():
        path = HERE / "fewshard" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
