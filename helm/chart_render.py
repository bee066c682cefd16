"""Renders the chart with Helm's own engine, offline; for the tests and `chart_check`."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml
from helm_python import Chart, lint

CHART = Path(__file__).parent / "fewshard"
Manifest = dict[str, Any]


def examples() -> dict[str, dict[str, Any]]:
    """Return the values of every file in ci/, by name."""
    paths = sorted((CHART / "ci").glob("*-values.yaml"))
    return {path.name: yaml.safe_load(path.read_text(encoding="utf-8")) or {} for path in paths}


class Renderer:
    """A chart, loaded once."""

    def __init__(self, path: Path = CHART) -> None:
        self._path = path
        self._chart = Chart.load(path)

    def render(self, values: Mapping[str, Any], name: str = "demo", namespace: str = "ns") -> list[Manifest]:
        """Return every object, and Helm's notes as kind "Notes". Raises helm_python's errors."""
        rendered = self._chart.render(values=dict(values), name=name, namespace=namespace)
        return [manifest for path in sorted(rendered) for manifest in _parsed(path, rendered[path])]

    def all_values(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """Merge these values over the chart's defaults, as Helm does."""
        return self._chart.merge_values(dict(values))

    def lint(self, values: Mapping[str, Any]) -> list[str]:
        """Return the findings of a strict lint."""
        found = lint(self._path, values=dict(values), strict=True)
        return [str(one) for one in (*found["errors"], *found["messages"])]


def _parsed(path: str, text: str) -> Iterator[Manifest]:
    if path.endswith("NOTES.txt"):
        yield {"kind": "Notes", "text": text}
        return
    yield from (manifest for manifest in yaml.safe_load_all(text) if manifest)


def of_kind(manifests: list[Manifest], kind: str) -> list[Manifest]:
    return [manifest for manifest in manifests if manifest["kind"] == kind]


def the_service(manifests: list[Manifest]) -> Manifest:
    """Return the only RayService."""
    (service,) = of_kind(manifests, "RayService")
    return service


def serve_config_of(manifests: list[Manifest]) -> dict[str, Any]:
    config = yaml.safe_load(the_service(manifests)["spec"]["serveConfigV2"])
    assert isinstance(config, dict)
    return config


def pod_templates(manifests: list[Manifest]) -> dict[str, Manifest]:
    """Return metadata and spec of every pod by name, except pods that KubeRay adds."""
    cluster = the_service(manifests)["spec"]["rayClusterConfig"]
    pods = {"head": cluster["headGroupSpec"]["template"]}
    pods |= {f"workers {group['groupName']}": group["template"] for group in cluster["workerGroupSpecs"]}
    return pods | {pod["metadata"]["name"]: pod for pod in of_kind(manifests, "Pod")}
