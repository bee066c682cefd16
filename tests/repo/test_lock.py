"""requirements.lock holds exact pins alone, torch first, and covers what pyproject.toml asks for."""

import re
import tomllib
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).parents[2]
LINES = (ROOT / "requirements.lock").read_text().splitlines()
PINS = {canonicalize_name(line.split("==")[0]): Version(line.split("==")[1]) for line in LINES}


def test_every_line_is_a_name_and_an_exact_version() -> None:
    bad = [line for line in LINES if not re.fullmatch(r"[A-Za-z0-9._-]+==[0-9][A-Za-z0-9.]*", line)]
    assert bad == []


def test_torch_comes_first() -> None:
    assert LINES[0].startswith("torch==")


def test_no_package_is_pinned_twice() -> None:
    assert len(PINS) == len(LINES)


def test_every_declared_requirement_is_pinned_within_its_bounds() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    declared = [
        *project["dependencies"],
        *(line for extra in project["optional-dependencies"].values() for line in extra),
    ]
    wanted = [Requirement(line) for line in declared]
    pins = {r.name: PINS.get(canonicalize_name(r.name)) for r in wanted}
    assert [name for name, pin in pins.items() if pin is None] == []
    assert [str(r) for r in wanted if pins[r.name] not in r.specifier] == []
