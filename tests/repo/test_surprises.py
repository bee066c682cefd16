"""docs/surprises.md names tests and scripts that exist, and every finding."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
ENTRIES = re.split(r"^- ", (ROOT / "docs/surprises.md").read_text().replace("\n## ", "\n- ## "), flags=re.M)
SURPRISES = [entry for entry in ENTRIES if entry.startswith("**")]
NAMES = sorted(set(re.findall(r"`(tests/[^`]+)`", "".join(SURPRISES))))


@pytest.mark.parametrize("entry", SURPRISES, ids=lambda entry: entry[2:42])
def test_each_is_held_by_a_test_or_says_that_none_does(entry: str) -> None:
    assert bool(re.search(r"`tests/.+::test_", entry)) != ("Not held by a test" in entry)


@pytest.mark.parametrize("name", NAMES)
def test_the_test_exists(name: str) -> None:
    path, *inner = name.split("::")
    node: ast.AST = ast.parse((ROOT / path).read_text())
    for each in inner:
        found = [
            child
            for child in ast.iter_child_nodes(node)
            if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) and child.name == each
        ]
        assert found, f"{path} has no {each}"
        node = found[0]


def test_every_finding_is_told() -> None:
    told = {Path(name).name for name in re.findall(r"`(findings/[^`]+)`", "".join(SURPRISES))}
    assert told == {path.name for path in (ROOT / "findings").iterdir()}
