"""What an installed Fewshard holds: the wheel is built here, without the network, and looked into."""

import os
import re
import subprocess
import sys
import zipfile
from collections.abc import Callable
from importlib.metadata import entry_points
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
COMMAND = "import sys; from fewshard_serve.cli import main; sys.exit(main())"
"""What the script of the entry point `fewshard` does."""
ROOMS = {
    "core": "fewshard_core",
    "kernels": "fewshard_kernels",
    "models": "fewshard_models",
    "serve": "fewshard_serve",
    "loadtest": "fewshard_loadtest",
}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    folder = tmp_path_factory.mktemp("wheel")
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)],
        cwd=ROOT,
        check=True,
        capture_output=True,
    )
    (path,) = folder.glob("*.whl")
    return zipfile.ZipFile(path)


def test_every_file_of_the_rooms_ships(wheel: zipfile.ZipFile) -> None:
    files = {
        p.relative_to(ROOT / room).as_posix()
        for room in ROOMS
        for p in (ROOT / room).rglob("*")
        if p.is_file()
    }
    expected = {name for name in files if "__pycache__" not in name}
    assert len(expected) > 20
    assert expected - set(wheel.namelist()) == set()


@pytest.mark.parametrize("package", ROOMS.values())
def test_type_markers_ship(wheel: zipfile.ZipFile, package: str) -> None:
    assert f"{package}/py.typed" in wheel.namelist()


def test_the_licence_ships(wheel: zipfile.ZipFile) -> None:
    (name,) = [name for name in wheel.namelist() if name.endswith("/licenses/LICENSE")]
    assert b"Apache License" in wheel.read(name)


def test_the_command_and_its_entry_points_ship(wheel: zipfile.ZipFile) -> None:
    (name,) = [name for name in wheel.namelist() if name.endswith("/entry_points.txt")]
    text = wheel.read(name).decode()
    assert "fewshard = fewshard_serve.cli:main" in text
    assert "[fewshard.commands]" in text


def test_nothing_else_ships(wheel: zipfile.ZipFile) -> None:
    tops = {name.split("/", 1)[0] for name in wheel.namelist()}
    assert {top for top in tops if not top.endswith(".dist-info")} == set(ROOMS.values())


@pytest.fixture(scope="module")
def run(wheel: zipfile.ZipFile, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., str]:
    """Runs Python with the wheel's contents before all else, away from the sources; gives what it printed."""
    site, elsewhere = tmp_path_factory.mktemp("site"), tmp_path_factory.mktemp("elsewhere")
    wheel.extractall(site)
    environment = {**os.environ, "PYTHONPATH": str(site)}

    def run(*arguments: str) -> str:
        command = [sys.executable, *arguments]
        done = subprocess.run(command, cwd=elsewhere, env=environment, capture_output=True, text=True)
        assert (done.returncode, done.stderr) == (0, "")
        return done.stdout.replace(str(site), "SITE")

    return run


def test_an_installed_command_runs_without_the_sources(run: Callable[..., str]) -> None:
    assert (
        run("-c", "import fewshard_serve.cli as cli; print(cli.__file__)") == "SITE/fewshard_serve/cli.py\n"
    )
    shown = run("-c", COMMAND, "--help")
    assert [name for name in entry_points(group="fewshard.commands").names if name not in shown] == []
    assert "usage: fewshard models" in run("-c", COMMAND, "models", "--help")


def test_an_installed_model_is_found_without_the_sources(run: Callable[..., str]) -> None:
    shown = run("-c", COMMAND, "inspect", "zoo:sst2-moe")
    assert re.search(r"^checkpoint +SITE/fewshard_models/zoo/sst2-moe$", shown, re.MULTILINE)
    assert re.search(r"^labels +negative, positive$", shown, re.MULTILINE)
