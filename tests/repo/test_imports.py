"""The arrows between the rooms hold, and import-linter would see it if one were broken.

The broken trees are copies of the sources with one bad import added.
"""

import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
ROOMS = ("core", "kernels", "models", "serve", "loadtest")
LINT = "import sys; from importlinter.cli import lint_imports_command; sys.exit(lint_imports_command())"


def lint(tree: Path) -> subprocess.CompletedProcess[str]:
    """Run the contracts of the tree's pyproject.toml on the tree's own sources."""
    paths = os.pathsep.join(str(tree / room) for room in ROOMS)
    environment = {**os.environ, "PYTHONPATH": paths, "COLUMNS": "200"}  # so that no line is wrapped
    return subprocess.run(
        [sys.executable, "-c", LINT, "--config", str(tree / "pyproject.toml"), "--no-cache"],
        cwd=tree,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    for room in ROOMS:
        shutil.copytree(
            ROOT / room, tmp_path / room, ignore=lambda _, names: [n for n in names if _is_data(n)]
        )
    return tmp_path


def _is_data(name: str) -> bool:
    return name == "__pycache__" or ("." in name and not name.endswith(".py"))


def test_the_arrows_hold() -> None:
    done = lint(ROOT)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize(
    ("module", "statement", "contract"),
    [
        ("kernels/fewshard_kernels/bad.py", "import fewshard_models", "Rooms import downwards only"),
        ("kernels/fewshard_kernels/bad.py", "import numpy", "Kernels know core, torch and triton only"),
        ("core/fewshard_core/bad.py", "import fewshard_kernels", "Rooms import downwards only"),
        ("core/fewshard_core/bad.py", "import torch", "Core knows the standard library and numpy only"),
        ("core/fewshard_core/bad.py", "import fewshard_loadtest", "Core knows the standard library"),
        ("models/fewshard_models/text/bad.py", "import fewshard_models.recipes.sst2", "Inside models"),
        ("models/fewshard_models/classifier.py", "import fewshard_models.recipes.texts", "Inside models"),
        ("models/fewshard_models/evaluation/tasks.py", "import fewshard_models.recipes.texts", "No circles"),
        ("serve/fewshard_serve/engine/bad.py", "import fewshard_serve.metrics.recorder", "Inside serve"),
        ("serve/fewshard_serve/protocol/bad.py", "import fewshard_serve.http.asgi", "Inside serve"),
        ("serve/fewshard_serve/http/bad.py", "import fewshard_serve.rpc.server", "Inside serve"),
        ("serve/fewshard_serve/http/request.py", "import fewshard_serve.http.asgi", "No circles"),
        ("models/fewshard_models/bad.py", "import fewshard_serve.core", "Rooms import downwards only"),
        ("models/fewshard_models/bad.py", "def f():\n    import ray", "Models need no server"),
        ("loadtest/fewshard_loadtest/bad.py", "import fewshard_serve", "The load test imports none"),
        ("loadtest/fewshard_loadtest/bad.py", "import torch", "The load test imports none"),
        (
            "loadtest/fewshard_loadtest/bad.py",
            "from fewshard_loadtest.peers.apps import model_cost",
            "programs are run, never imported",
        ),
        (
            "loadtest/fewshard_loadtest/peers/apps/bad.py",
            "import fewshard_serve",
            "The load test imports none",
        ),
        ("serve/fewshard_serve/bad.py", "import fewshard_loadtest", "over the network alone"),
        (
            "serve/fewshard_serve/http/bad.py",
            "from fewshard_serve.rayserve import launch",
            "Ray stays at the edge",
        ),
        ("serve/fewshard_serve/engine/bad.py", "import torch", "neither HTTP nor torch"),
        ("serve/fewshard_serve/rayserve/bad.py", "import prometheus_client", "Prometheus' own library"),
    ],
)
def test_a_broken_arrow_is_seen(copy: Path, module: str, statement: str, contract: str) -> None:
    with (copy / module).open("a") as file:
        file.write(statement + "\n")
    done = lint(copy)
    assert done.returncode == 1, done.stdout + done.stderr
    # Behind the word stands how many imports a contract leaves out, where it leaves out any.
    broken = [line for line in done.stdout.splitlines() if re.search(r" BROKEN( \(.*\))?$", line)]
    assert any(contract in line for line in broken), done.stdout


@pytest.mark.parametrize("package", ["fewshard_models", "fewshard_serve"])
def test_every_module_stands_in_a_layer(package: str) -> None:
    """A module in no layer would be free to import what it likes."""
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    layers = {
        name
        for contract in contracts
        if contract["type"] == "layers"
        for layer in contract["layers"]
        for name in layer.split(" | ")
        if name.startswith(f"{package}.")
    }
    folder = next(ROOT.glob(f"*/{package}"))
    modules = {path.stem for path in folder.glob("*.py")} | {
        path.parent.name for path in folder.glob("*/__init__.py")
    }
    assert layers == {f"{package}.{name}" for name in modules - {"__init__"}}
