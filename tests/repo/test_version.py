"""The version is written in three places; `make check` runs this so that they agree."""

import re
import tomllib
from pathlib import Path

import fewshard_serve

ROOT = Path(__file__).parents[2]


def package_version() -> str:
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert isinstance(version, str)
    return version


def test_the_newest_changelog_entry_is_the_packages_version() -> None:
    newest = re.search(r"^## \[(\d+\.\d+\.\d+)\]", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert newest is not None
    assert newest[1] == package_version()


def test_the_server_reports_the_packages_version() -> None:
    assert fewshard_serve.__version__ == package_version()
