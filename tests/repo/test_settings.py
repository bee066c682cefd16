"""What a user can set is described once: one class a setting, which the code uses as it is."""

import ast
import pickle
import subprocess
import sys
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, get_args, get_type_hints

import pytest
from pydantic import BaseModel

from fewshard_serve.config import FewshardConfig
from fewshard_serve.rayserve.deployment_plan import plan_cascades, plan_hosts

ROOT = Path(__file__).parents[2]
PACKAGES = ("core", "kernels", "models", "serve", "loadtest")


def keys(section: type) -> dict[str, Any]:
    if issubclass(section, BaseModel):
        return {name: field.annotation for name, field in section.model_fields.items()}
    hints = get_type_hints(section)
    return {field.name: hints[field.name] for field in fields(section)}


def sections_in(annotation: Any) -> set[type]:
    if isinstance(annotation, type) and (issubclass(annotation, BaseModel) or is_dataclass(annotation)):
        return {annotation}.union(*(sections_in(each) for each in keys(annotation).values()))
    return set().union(*(sections_in(part) for part in get_args(annotation)))


def annotated_names(node: ast.ClassDef) -> set[str]:
    return {each.target.id for each in node.body if isinstance(each, ast.AnnAssign)}


SECTIONS = sections_in(FewshardConfig)


@pytest.fixture(scope="module")
def classes() -> dict[str, set[str]]:
    """The annotated names in the body of every class of ours, by the class's own."""
    found = {}
    for package in PACKAGES:
        for path in (ROOT / package).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.ClassDef):
                    found[f"{path.relative_to(ROOT / package)}:{node.name}"] = annotated_names(node)
    return found


def test_the_walk_finds_the_settings() -> None:
    assert len(SECTIONS) == 20
    assert {"AdmissionSettings", "ExpertsSettings", "Limits"} < {section.__name__ for section in SECTIONS}


@pytest.mark.parametrize("section", sorted(SECTIONS, key=lambda s: s.__name__), ids=lambda s: s.__name__)
def test_no_setting_has_a_second_class(section: type, classes: dict[str, set[str]]) -> None:
    own = f"{section.__module__.replace('.', '/')}.py:{section.__name__}"
    assert own in classes
    names = set(keys(section))
    copies = [name for name, held in classes.items() if name != own and names <= held and len(names) > 1]
    assert copies == []


@pytest.mark.parametrize("section", sorted(SECTIONS, key=lambda s: s.__name__), ids=lambda s: s.__name__)
def test_settings_are_frozen_and_take_no_other_keys(section: type) -> None:
    if issubclass(section, BaseModel):
        assert (section.model_config["frozen"], section.model_config["extra"]) == (True, "forbid")
    else:
        assert section.__dataclass_params__.frozen
        assert section.__pydantic_config__ == {"extra": "forbid"}


def test_settings_travel_to_replicas() -> None:
    model = {
        "name": "m",
        "path": "x",
        "replicas": {"min": 1, "max": 3},
        "experts": {"shards": 2},
        "batching": {"max_items": 3},
        "shadow": "n",
    }
    cascade = {"name": "c", "stages": ["m", "n"], "accept_above": 0.5}
    models = [model, {"name": "n", "path": "x"}]
    tracing = {"endpoint": "http://x"}
    config = FewshardConfig.model_validate({"models": models, "cascades": [cascade], "tracing": tracing})
    hosts = plan_hosts(config)
    plan = [*hosts, *plan_cascades(config, hosts)]
    assert pickle.loads(pickle.dumps(plan)) == plan
    assert pickle.loads(pickle.dumps(config)) == config


def test_a_groups_settings_need_no_pydantic() -> None:
    code = "import sys, fewshard_serve.group.settings; sys.exit('pydantic' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
