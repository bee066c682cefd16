"""ARCHITECTURE.md is short, names what there is, and shows every package in its picture."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "ARCHITECTURE.md").read_text()
PACKAGES = {
    "core": "fewshard_core",
    "kernels": "fewshard_kernels",
    "models": "fewshard_models",
    "serve": "fewshard_serve",
    "loadtest": "fewshard_loadtest",
}
ROWS = re.findall(r"^\| (an? [^|]+) \| ([^|]+) \| `(tests/[^`]+)` \|$", TEXT, re.MULTILINE)


def test_it_can_be_read_in_a_few_minutes() -> None:
    assert len(TEXT.encode()) < 8192


def test_the_table_of_what_to_add_is_whole() -> None:
    wanted = ("endpoint", "task", "architecture", "number format", "setting", "metric", "error", "command")
    said = " ".join(what for what, _, _ in ROWS)
    assert [word for word in wanted if word not in said] == []


@pytest.mark.parametrize(("what", "where", "test"), ROWS, ids=[row[0] for row in ROWS])
def test_the_way_to_add_something_leads_somewhere(what: str, where: str, test: str) -> None:
    """Each file it names exists, the first by its whole path, and the test is one."""
    paths = re.findall(r"`([\w/]+(?:\.\w+|/\w+))`", where)
    assert paths or what == "a setting", f"{what}: name a file"
    for path in paths:
        near = [
            ROOT / path,
            *((ROOT / each).parent / path for each in paths),
            *(ROOT / each / path for each in paths),
        ]
        assert any(each.exists() for each in near), f"{what}: there is no {path}"
    assert "def test_" in (ROOT / test).read_text(), f"{what}: {test} tests nothing"


def test_every_module_that_is_named_exists() -> None:
    named = re.findall(r"\(`([a-z_]+/[a-z_]+\.py)`\)", TEXT)
    assert len(named) > 5
    roots = [ROOT / top / package for top, package in PACKAGES.items()]
    assert [name for name in named if not any((root / name).exists() for root in roots)] == []


def test_the_picture_shows_every_package() -> None:
    shown = re.findall(r"<text [^>]*>([^<]+)</text>", (ROOT / "docs/packages.svg").read_text())
    words = set(re.findall(r"\w+", " ".join(shown)))
    folders = {
        folder.name
        for top, package in PACKAGES.items()
        for folder in (ROOT / top / package).iterdir()
        if (folder / "__init__.py").exists()
    }
    inner = {"cost", "peers", "report"}  # of the load test
    assert {*PACKAGES, *folders, *inner} - words == set()
