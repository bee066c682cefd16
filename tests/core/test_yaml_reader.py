"""The reader of YAML files: lines, mistakes in words, and what YAML itself leaves open."""

import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import pytest
from pydantic import BaseModel, Field

from fewshard_core.errors import FewshardError
from fewshard_core.yaml_reader import Mistake, Section, read_yaml, spell, unknown_keys


class Unreadable(FewshardError):
    """What these tests ask for."""


@dataclass(frozen=True)
class Limits:
    __pydantic_config__ = {"extra": "forbid"}  # noqa: RUF012  as settings have it

    max_items: int = 3


class Open(Section):
    kind: Literal["open"]
    rate: float


class Closed(Section):
    kind: Literal["closed"]
    users: int
    limits: Limits = Limits()


class Plan(Section):
    name: str = "plan"
    limits: Limits = Limits()
    loads: tuple[Annotated[Open | Closed, Field(discriminator="kind")], ...] = ()
    options: dict[str, int] = Field(default_factory=dict)


@pytest.fixture
def parse(tmp_path):
    def parsed(text):
        path = tmp_path / "plan.yaml"
        path.write_text(text)
        return read_yaml(path, Unreadable).parse(Plan)

    return parsed


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("limits:\n  max_itms: 3", ", line 2: unknown key 'max_itms' in limits; did you mean 'max_items'?"),
        ("limits: 3", ", line 1: limits must be a mapping with the keys max_items"),
        ("loads: 3", ", line 1: loads must be a list (given: 3)"),
        (
            "loads:\n- {kind: open, rates: 3}",
            ", line 2: loads[0] lacks the key 'rate'\n{path}, line 2: unknown key 'rates' in loads[0]; "
            "did you mean 'rate'?",
        ),
        (
            "loads:\n- {kind: open, rate: 1}\n- {kind: closed, users: 1, rate: 3}",
            ", line 3: unknown key 'rate' in loads[1]; known keys: kind, users, limits",
        ),
        (
            "loads:\n- kind: closed\n  users: 1\n  limits: {max_item: 1}",
            ", line 4: unknown key 'max_item' in loads[0].limits; did you mean 'max_items'?",
        ),
        (
            "loads: [{kind: open, rate: x}]",
            ", line 1: loads[0].rate: input should be a valid number, "
            "unable to parse string as a number (given: 'x')",
        ),
        ("loads: [{kind: open, open: 1, rate: 1}]", ", line 1: unknown key 'open' in loads[0]; known keys"),
        ("name: a\nlimits: {}\nname: b", ", line 3: the key 'name' is given twice"),
        ("options: {a: 1, a: 2}", ", line 1: the key 'a' is given twice"),
        ("- &a {x: 1, x: 2}\n- *a", ", line 1: the key 'x' is given twice"),
        ("", ": the file must be a mapping with the keys name, limits, loads, options"),
    ],
)
def test_a_mistake_is_told_with_its_place(parse, tmp_path, text, message):
    with pytest.raises(Unreadable) as caught:
        parse(text)
    path = tmp_path / "plan.yaml"
    assert str(caught.value).startswith(f"{path}{message.format(path=path)}")


def test_values_are_those_of_yaml_1_1(parse):
    assert parse("options: {a: yes, b: 010, c: 0b11, d: 1_000}").options == {
        "a": 1,
        "b": 8,
        "c": 3,
        "d": 1000,
    }
    assert parse("loads: [{kind: open, rate: 1e-5}]").loads == (Open(kind="open", rate=1e-5),)


def test_a_merged_mapping_may_be_overridden(parse):
    first, second = parse("loads:\n- &a {kind: open, rate: 1}\n- {<<: *a, rate: 2}").loads
    assert (first.rate, second.rate) == (1, 2)


def test_whatever_cannot_be_read_is_the_callers_error(tmp_path):
    with pytest.raises(Unreadable, match="no such file"):
        read_yaml(tmp_path / "none", Unreadable)
    with pytest.raises(Unreadable, match="cannot be read"):
        read_yaml(tmp_path, Unreadable)
    (tmp_path / "deep").write_text("[" * 5000)
    with pytest.raises(Unreadable, match="nested too deeply"):
        read_yaml(tmp_path / "deep", Unreadable)


class Lenient(BaseModel):
    """As Ray Serve's schemas are: unknown keys are ignored."""

    port: int = 1
    parts: list["Lenient"] | dict[str, int] = Field(default_factory=list)


def test_unknown_keys_of_a_kind_that_ignores_them():
    data = {"prt": 1, "parts": [{"port": 2}, {"pots": 1}], "zzz": 0}
    assert list(unknown_keys(Lenient, data, ("top",))) == [
        Mistake(("top", "prt"), "unknown key 'prt' in top; did you mean 'port'?"),
        Mistake(("top", "parts", 1, "pots"), "unknown key 'pots' in top.parts[1]; did you mean 'port'?"),
        Mistake(("top", "zzz"), "unknown key 'zzz' in top; known keys: port, parts"),
    ]


def test_spelling() -> None:
    assert spell(("models", 0, "batching")) == "models[0].batching"
    assert spell(()) == "the file"


def test_the_package_itself_needs_neither_library() -> None:
    code = "import sys, fewshard_core.errors; sys.exit(bool({'yaml', 'pydantic'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_the_line_of_an_alias_is_that_of_what_it_stands_for(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("first: &a\n  name: 3\nsecond: *a\n")
    file = read_yaml(tmp_path / "a.yaml", Unreadable)
    assert file.message(("second", "name"), "x") == f"{tmp_path}/a.yaml, line 2: x"
    assert file.message(("second", "other"), "x") == f"{tmp_path}/a.yaml, line 3: x"
