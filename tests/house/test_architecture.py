"""ARCHITECTURE.md has a line for every module that holds code, and no line for one that has gone."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGES = (
    "serve/fewshard_serve",
    "models/fewshard_models",
    "kernels/fewshard_kernels",
    "loadtest/fewshard_loadtest",
)


@pytest.mark.parametrize("package", PACKAGES)
def test_every_module_has_its_line(package: str) -> None:
    text = (ROOT / "ARCHITECTURE.md").read_text()
    (section,) = re.findall(rf"^### {package}\n(.*?)(?=^### |\Z)", text, re.MULTILINE | re.DOTALL)
    named = re.findall(r"^\| `([\w/]+\.py)` \|", section, re.MULTILINE)
    modules = {
        p.relative_to(ROOT / package).as_posix() for p in (ROOT / package).rglob("*.py") if _holds_code(p)
    }
    assert not modules - set(named), "give each its line in ARCHITECTURE.md"
    assert not set(named) - modules, "these have gone; take their lines out of ARCHITECTURE.md"
    assert len(named) == len(set(named))


def _holds_code(path: Path) -> bool:
    """Whether it defines anything: an `__init__.py` of imports alone needs no line."""
    if path.name != "__init__.py":
        return True
    return any(isinstance(node, ast.FunctionDef | ast.ClassDef) for node in ast.parse(path.read_text()).body)
