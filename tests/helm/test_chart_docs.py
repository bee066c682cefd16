"""docs/kubernetes.md: its values render, its table holds every field of the RayService."""

import re
from pathlib import Path

import pytest
import yaml

import chart_validate
from chart_render import CHART, examples, the_service

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "docs/kubernetes.md").read_text()
ROWS = re.findall(
    r"^\| (`.*?) \| (.*) \|$", TEXT.partition("## Every field of the RayService")[2], re.MULTILINE
)
DOCUMENTED = {field for row in ROWS for field in re.findall("`([^`]+)`", row[0])}
POD_DEEP = {"metadata", "spec", "containers[]"}
DEEP = {"rayClusterConfig", "headGroupSpec", "workerGroupSpecs[]", "upgradeStrategy", "serveService"}


def fields(value, deep, at=""):
    """The paths of `value`, taken apart where a key is in `deep`."""
    for key, part in value.items():
        name, inner = (f"{key}[]", part) if isinstance(part, list) else (key, [part])
        if name in deep and all(isinstance(one, dict) for one in inner):
            for one in inner:
                yield from fields(one, deep, f"{at}{name}.")
        else:
            yield at + key


@pytest.mark.parametrize("name", examples())
def test_every_field_that_is_rendered_is_in_the_table(render, name):
    spec = the_service(render(examples()[name]))["spec"]
    cluster = spec["rayClusterConfig"]
    pods = [cluster["headGroupSpec"]["template"], *(one["template"] for one in cluster["workerGroupSpecs"])]
    found = set(fields(spec, DEEP)) | {field for pod in pods for field in fields(pod, POD_DEEP)}
    assert len(found) > 30
    assert found - DOCUMENTED == set()


def test_every_field_of_the_crd_is_in_the_table(crd):
    """Those of the RayService itself and of its cluster, but for what KubeRay says is of no use any more."""
    spec = crd["properties"]["spec"]["properties"]
    of_no_use = {"deploymentUnhealthySecondThreshold", "serviceUnhealthySecondThreshold"}
    cluster = spec["rayClusterConfig"]["properties"]
    beside = {"headServiceAnnotations", "managedBy", "suspend", "upgradeStrategy"}
    fields = {*(set(spec) - of_no_use), *(f"rayClusterConfig.{key}" for key in set(cluster) - beside)}
    assert {one for one in fields if not any(known.startswith(one) for known in DOCUMENTED)} == set()


def test_every_value_in_the_table_exists():
    values = yaml.safe_load((CHART / "values.yaml").read_text())
    named = {key for row in ROWS for key in re.findall("`([a-zA-Z.]+)`", row[1])} - {"resources"}
    assert len(named) > 60
    for path in named - {"ray-head", "ray-worker"}:
        inside = values
        for key in path.split("."):
            assert key in inside, path
            inside = inside[key]


def test_every_section_is_in_the_readme():
    readme = (CHART / "README.md").read_text()
    sections = set(yaml.safe_load((CHART / "values.yaml").read_text()))
    small = {
        "nameOverride",
        "fullnameOverride",
        "commonLabels",
        "commonAnnotations",
        "suspend",
        "haproxyThreads",
        "haproxyAnswerSeconds",
    }
    small |= {"env", "envFrom", "extraVolumes", "extraVolumeMounts"}
    assert {name for name in sections - small if f"`{name}`" not in readme} == set()


def test_the_documented_values_render(renderer):
    blocks = re.findall(r"```yaml\n(.*?)```", TEXT, re.DOTALL)
    assert len(blocks) >= 2
    for block in blocks:
        given = yaml.safe_load(block)
        assert chart_validate.complaints(renderer.render(given), renderer.all_values(given)) == []
