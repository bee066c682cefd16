"""The documents name what there is: every configuration key, every command, and links that lead somewhere."""

import re
from dataclasses import is_dataclass
from importlib.metadata import entry_points
from pathlib import Path

import pytest

from fewshard_serve.canary import CanaryConfig, JudgeConfig
from fewshard_serve.cli import build_parser
from fewshard_serve.config import (
    AuthConfig,
    CascadeConfig,
    ModelConfig,
    ReplicasConfig,
    ServerConfig,
    ShadowConfig,
)
from fewshard_serve.config_file import load_config
from fewshard_serve.engine.settings import AdmissionSettings, BatchingSettings
from fewshard_serve.group.settings import ExpertsSettings
from fewshard_serve.http.callers import CallersSettings
from fewshard_serve.http.cors import CorsSettings
from fewshard_serve.http.middleware import TracingSettings
from fewshard_serve.logs import LogSettings
from fewshard_serve.metrics import FAMILIES, CostSettings, MetricsSettings
from fewshard_serve.protocol.limits import Limits

ROOT = Path(__file__).parents[2]
DOCUMENTS = sorted(p for p in [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")])


SECTIONS = {
    "models": ModelConfig,
    "canary": CanaryConfig,
    "judge": JudgeConfig,
    "cascades": CascadeConfig,
    "replicas": ReplicasConfig,
    "batching": BatchingSettings,
    "admission": AdmissionSettings,
    "experts": ExpertsSettings,
    "cost": CostSettings,
    "shadow": ShadowConfig,
    "server": ServerConfig,
    "auth": AuthConfig,
    "limits": Limits,
    "logging": LogSettings,
    "metrics": MetricsSettings,
    "tracing": TracingSettings,
    "cors": CorsSettings,
    "callers": CallersSettings,
}


@pytest.mark.parametrize("section", SECTIONS)
def test_every_configuration_key_is_documented_with_its_default(section: str) -> None:
    text = (ROOT / "docs/configuration.md").read_text()
    (body,) = re.findall(rf"^## `{section}`\n(.*?)(?=^## )", text, re.MULTILINE | re.DOTALL)
    documented = dict(re.findall(r"^\| `(\w+)` \| *`?([^|`]*?)`? *\|", body, re.MULTILINE))
    kind = SECTIONS[section]
    fields = kind.__dataclass_fields__ if is_dataclass(kind) else kind.model_fields
    assert documented == {key: _as_written(field.default) for key, field in fields.items()}


def _as_written(default: object) -> str:
    if isinstance(default, float):
        return f"{default:g}"
    return str(default) if isinstance(default, int | str) else ""


def test_the_documented_configuration_loads(tmp_path: Path) -> None:
    # Those of docs/kubernetes.md are values of the chart, whose tests render them.
    own = [p for p in DOCUMENTS if p.name != "kubernetes.md"]
    blocks = re.findall(r"```yaml\n(.*?)```", "".join(p.read_text() for p in own), re.DOTALL)
    assert len(blocks) >= 2
    for block in blocks:
        path = tmp_path / "fewshard.yaml"
        path.write_text(block.replace("zoo:sst2-moe", "./sst2-moe"))
        assert load_config(path).models


def test_the_help_says_what_every_command_is_for() -> None:
    commands = entry_points(group="fewshard.commands")
    names = {point.name for point in commands}
    explained = dict(re.findall(r"^    (\w+)\s+(\S.*)$", build_parser(commands).format_help(), re.MULTILINE))
    assert {name for name in names if len(explained.get(name, "")) < 10} == set()
    assert "`fewshard --help`" in (ROOT / "README.md").read_text()


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_relative_links_lead_somewhere(document: Path) -> None:
    targets = re.findall(r"\]\((?!https?://|#)([^)#]+)", document.read_text())
    assert [target for target in targets if not (document.parent / target).exists()] == []


def test_every_metric_is_documented_as_it_is_defined() -> None:
    text = (ROOT / "docs/metrics.md").read_text()
    documented = re.findall(r"^\| `(fewshard_\w+)` \| *(.*?) *\| (.*) \|$", text, re.MULTILINE)
    defined = [
        (family.name, ", ".join(f"`{label}`" for label in family.labels), family.help) for family in FAMILIES
    ]
    assert documented == defined
