"""The drawing of our errors is complete: what it shows is what a walk of the classes finds."""

import ast
import json
import os
import pickle
import re
import subprocess
import sys
from pathlib import Path

import pytest

from fewshard_core.errors import FewshardError
from fewshard_serve.errors import MethodNotAllowed, Overloaded, UnknownModel, UnusableItem

ROOT = Path(__file__).parents[2]
PACKAGES = ("core", "kernels", "models", "serve", "loadtest")
OTHER_ENVIRONMENTS = "loadtest/fewshard_loadtest/peers/apps"

# Locust patches sockets where it is imported, so another process imports the modules.
WALK = """
import importlib, json, sys
for module in sys.argv[1:]:
    importlib.import_module(module)
kinds = [Exception]
for kind in kinds:
    kinds += [child for child in kind.__subclasses__() if child not in kinds]
ours = [kind for kind in kinds if kind.__module__.startswith("fewshard")]
print(json.dumps([[kind.__name__, kind.__bases__[0].__name__, kind.__module__] for kind in ours]))
"""


@pytest.fixture(scope="module")
def errors() -> list[tuple[str, str, str]]:
    """Name, base and module of each exception class of ours; the modules that define one are imported."""
    done = subprocess.run(
        [sys.executable, "-c", WALK, *modules_with_errors()],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return [(name, base, module) for name, base, module in json.loads(done.stdout.splitlines()[-1])]


def modules_with_errors() -> list[str]:
    """The dotted names of our modules that define an exception class, found by the names of bases."""
    bases = {
        path: _classes(path)
        for package in PACKAGES
        for path in sorted((ROOT / package).rglob("*.py"))
        if OTHER_ENVIRONMENTS not in path.as_posix()
    }
    kinds, num_before = {"BaseException"}, 0
    while len(kinds) > num_before:
        num_before = len(kinds)
        kinds |= {
            name
            for classes in bases.values()
            for name, above in classes
            if any(base in kinds or base.endswith(("Error", "Exception", "Warning")) for base in above)
        }
    found = [path for path, classes in bases.items() if kinds & {name for name, _ in classes}]
    return [".".join(path.relative_to(ROOT).with_suffix("").parts[1:]) for path in found]


def _classes(path: Path) -> list[tuple[str, list[str]]]:
    """Each class with the last names of its bases: "RpcError" for `grpc.RpcError`."""
    return [
        (node.name, [ast.unparse(base).rsplit(".", 1)[-1] for base in node.bases])
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.ClassDef)
    ]


def drawn() -> dict[str, str]:
    """The base of each class as the drawing shows it."""
    bases, above = {}, ["FewshardError"]
    for stem, name in re.findall(r"^((?:│   |    )*)[├└]── (\w+)", _drawing(), re.MULTILINE):
        depth = 1 + len(stem) // 4
        above[depth:] = [name]
        assert name not in bases, f"{name} is drawn twice"
        bases[name] = above[depth - 1]
    return bases


def _drawing() -> str:
    text = FewshardError.__doc__ or ""
    return re.sub(r"^    ", "", text[text.index("    FewshardError\n") :], flags=re.MULTILINE)


def test_every_exception_of_ours_stands_under_the_one_root(errors: list[tuple[str, str, str]]) -> None:
    names = {"FewshardError", *(name for name, _, _ in errors)}
    strangers = [
        f"{module}.{name}" for name, base, module in errors if name != "FewshardError" and base not in names
    ]
    assert strangers == [], "derive them from FewshardError or one of its children"


def test_the_drawing_shows_each_error_under_its_base(errors: list[tuple[str, str, str]]) -> None:
    found = {name: base for name, base, _ in errors if name != "FewshardError"}
    assert len(found) > 30
    assert drawn() == found, "draw it in the docstring of FewshardError"


@pytest.mark.parametrize(
    "error",
    [
        UnknownModel("x", ["y"]),
        MethodNotAllowed("no", "GET"),
        UnusableItem(3, "empty"),
        Overloaded("busy", 2.5),
        FewshardError("plain"),
    ],
)
def test_an_error_keeps_its_fields_between_processes(error: FewshardError) -> None:
    copy = pickle.loads(pickle.dumps(error))
    assert type(copy) is type(error)
    assert (str(copy), vars(copy)) == (str(error), vars(error))
