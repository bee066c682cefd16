"""`make`: what a second call does again, and where tests find their data; on copies of the Makefile."""

import os
import shutil
import subprocess
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SHOW_DATA = ["--eval", "show: ; @echo [$(FEWSHARD_DATA)]", "show"]


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    tree = tmp_path / "project"
    tree.mkdir()
    for name in ("Makefile", "requirements.lock", "pyproject.toml"):
        shutil.copy(ROOT / name, tree)
    return tree


def make(tree: Path, *arguments: str, data: str | None = None) -> str:
    # These tests run under make themselves, which hands its own settings on.
    ours = ("FEWSHARD_DATA", "JOBS", "MAKEFLAGS", "MAKELEVEL", "MFLAGS", "VENV")
    keep = {key: value for key, value in os.environ.items() if key not in ours}
    environment = {**keep, **({} if data is None else {"FEWSHARD_DATA": data})}
    done = subprocess.run(
        ["make", *arguments], cwd=tree, env=environment, capture_output=True, text=True, check=True
    )
    return done.stdout


def stamp(tree: Path) -> None:
    (tree / ".venv").mkdir()
    later = time.time() + 10
    for offset, name in enumerate((".locked", ".installed")):
        (tree / ".venv" / name).touch()
        os.utime(tree / ".venv" / name, (later + offset, later + offset))


def test_the_first_serve_sets_up(tree: Path) -> None:
    said = make(tree, "-n", "serve")
    assert "-m venv .venv" in said
    assert said.index("grep '^torch=='") < said.index("--requirement requirements.lock")
    (locked,) = [line for line in said.splitlines() if "--requirement requirements.lock" in line]
    assert "--no-deps" not in locked, "pip refuses pins that contradict each other"
    assert said.splitlines()[-1] == ".venv/bin/fewshard serve "


def test_a_second_serve_starts_at_once(tree: Path) -> None:
    stamp(tree)
    assert make(tree, "-n", "serve", "CONFIG=a.yaml") == ".venv/bin/fewshard serve a.yaml\n"


@pytest.mark.parametrize(("changed", "reinstalls"), [("requirements.lock", True), ("pyproject.toml", False)])
def test_a_change_is_installed_again(tree: Path, changed: str, reinstalls: bool) -> None:
    stamp(tree)
    later = time.time() + 100
    os.utime(tree / changed, (later, later))
    said = make(tree, "-n", "serve")
    assert "--editable ." in said
    assert ("--requirement requirements.lock" in said) == reinstalls


def test_data_is_found_beside_the_project(tree: Path) -> None:
    assert make(tree, *SHOW_DATA) == "[]\n"
    data = tree.parent / "shared/data"
    data.mkdir(parents=True)
    assert make(tree, *SHOW_DATA) == f"[{data}]\n"
    assert make(tree, *SHOW_DATA, data="/elsewhere") == "[/elsewhere]\n"


def test_help_lists_every_command(tree: Path) -> None:
    said = make(tree)
    assert [f"make {name} " in said for name in ("setup", "serve", "test", "check", "bench", "clean")] == [
        True
    ] * 6


def test_tests_run_side_by_side_and_the_slowest_are_named(tree: Path) -> None:
    stamp(tree)
    assert (
        make(tree, "-n", "test") == ".venv/bin/pytest -n 2 --dist loadfile --durations 10 --reruns 1 -r R\n"
    )
    assert " -n 0 " in make(tree, "-n", "test", "JOBS=0")
