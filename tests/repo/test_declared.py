"""What the packages import is declared in pyproject.toml, and what is declared is imported by one of them."""

import ast
import sys
import tomllib
from collections.abc import Iterator
from functools import cache
from importlib.metadata import distribution, packages_distributions
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = {
    "core": (),
    "kernels": ("gpu",),
    "models": ("train", "plots", "sparsify"),
    "serve": ("gpu", "plots"),
    "loadtest": ("loadtest",),
}
"""Which extras a package may import from, beside the dependencies that all have."""

PACKAGES = [package for package in EXTRAS if (ROOT / package).is_dir()]
ELSEWHERE = ROOT / "loadtest/fewshard_loadtest/peers/apps"
"""Applications that run in environments of their own."""


def names_of(lines: list[str]) -> set[str]:
    return {canonicalize_name(Requirement(line).name) for line in lines}


def declared(package: str) -> set[str]:
    extras = (PROJECT["optional-dependencies"][extra] for extra in EXTRAS[package])
    return names_of([*PROJECT["dependencies"], *(line for extra in extras for line in extra)])


def imported(package: str) -> set[str]:
    """The modules that are not the standard library's or our own, wherever in a file they are imported."""
    files = [path for path in (ROOT / package).rglob("*.py") if not path.is_relative_to(ELSEWHERE)]
    modules = {module for path in files for module in imports_of(path.read_text())}
    return {module for module in modules if is_foreign(module.partition(".")[0])}


def imports_of(source: str) -> Iterator[str]:
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (name.name for name in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            yield from (f"{node.module}.{name.name}" for name in node.names)


def is_foreign(top: str) -> bool:
    return top not in sys.stdlib_module_names and not top.startswith("fewshard_")


@cache
def distributions() -> dict[str, list[str]]:
    """Distributions by the top-level module; reading all metadata takes a second."""
    return dict(packages_distributions())


@cache
def files_of(name: str) -> list[str]:
    return [file.as_posix() for file in distribution(name).files or []]


@cache
def owners(module: str) -> frozenset[str]:
    """The installed distributions this module can come from: one, but for a namespace package itself."""
    names = {canonicalize_name(name) for name in distributions().get(module.partition(".")[0], ())}
    holding = {name for name in names if holds(name, module)}
    return frozenset(names if len(names) == 1 else holding)


def holds(name: str, module: str) -> bool:
    """Whether the distribution has a file of this module, or of the one that this is a name in."""
    outer, last = (part.replace(".", "/") for part in module.rpartition(".")[::2])
    starts = (f"{outer}/{last}.", f"{outer}/{last}/", f"{outer}.", f"{outer}/__init__.")
    return any(file.startswith(starts) for file in files_of(name))


@pytest.mark.parametrize("package", PACKAGES)
def test_what_a_package_imports_is_declared(package: str) -> None:
    known = declared(package)
    missing = {module: sorted(owners(module)) for module in imported(package) if not owners(module) & known}
    assert missing == {}


def test_what_is_declared_is_imported() -> None:
    used = {name for package in PACKAGES for module in imported(package) for name in owners(module)}
    extras = {extra for package in PACKAGES for extra in EXTRAS[package]}
    lines = [line for extra in extras for line in PROJECT["optional-dependencies"][extra]]
    assert names_of([*PROJECT["dependencies"], *lines]) - used == set()


def test_an_import_without_a_declaration_is_seen() -> None:
    source = "def f():\n    from google.api_core import page_iterator\n    import werkzeug.serving as s"
    assert list(imports_of(source)) == ["google.api_core.page_iterator", "werkzeug.serving"]
    assert {owners(module) for module in imports_of(source)} == {
        frozenset({"google-api-core"}),
        frozenset({"werkzeug"}),
    }
    assert not {"google-api-core", "werkzeug"} & declared("serve")
