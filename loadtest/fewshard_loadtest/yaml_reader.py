"""Reads a YAML file into a pydantic model, and puts mistakes in a user's words with their line."""

import difflib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from fewshard_loadtest.errors import ScenarioError

Location = tuple[int | str, ...]


class Section(BaseModel):
    """The base of everything a file may hold: frozen, and no key that is not known."""

    model_config = ConfigDict(frozen=True, extra="forbid")


AnySection = TypeVar("AnySection", bound=Section)


def read(path: Path, kind: type[AnySection]) -> AnySection:
    """Raises `ScenarioError` with a line for each mistake."""
    try:
        text = path.read_text(encoding="utf-8")
        node = yaml.compose(text, Loader=yaml.SafeLoader)
        data = yaml.safe_load(text)
    except OSError as error:
        raise ScenarioError(f"{path}: cannot be read: {error.strerror}") from None
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        raise ScenarioError(f"{path}: not valid YAML: {' '.join(str(error).split())}") from None
    lines = dict(_lines(node, ())) if node is not None else {}
    try:
        return kind.model_validate(data)
    except ValidationError as error:
        mistakes = [_explain(path, dict(detail), lines) for detail in error.errors()]
        raise ScenarioError("\n".join(dict.fromkeys(mistakes))) from None


def _lines(node: yaml.Node, at: Location) -> Iterator[tuple[Location, int]]:
    yield at, node.start_mark.line + 1
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            yield from _lines(value, (*at, str(key.value)))
            yield (*at, str(key.value)), key.start_mark.line + 1
    elif isinstance(node, yaml.SequenceNode):
        for place, value in enumerate(node.value):
            yield from _lines(value, (*at, place))


def _explain(path: Path, detail: dict[str, Any], lines: dict[Location, int]) -> str:
    # pydantic puts the chosen kind of a union into the way to a value; a file has no such step.
    at = tuple(step for step in detail["loc"] if not _is_tag(step, detail["loc"]))
    line = next((lines[at[:n]] for n in range(len(at), -1, -1) if at[:n] in lines), 1)
    return f"{path}, line {line}: {_words(detail, at)}"


def _is_tag(step: int | str, loc: Location) -> bool:
    index = loc.index(step)
    return isinstance(step, str) and index > 0 and isinstance(loc[index - 1], int) and index < len(loc) - 1


def _words(detail: dict[str, Any], at: Location) -> str:
    where = ".".join(map(str, at))
    if detail["type"] == "extra_forbidden":
        return f"unknown key {str(at[-1])!r}{_nearest(str(at[-1]))}"
    if detail["type"] == "missing":
        return f"the key {where!r} is missing"
    message = str(detail["msg"]).removeprefix("Value error, ")
    given = "" if detail["type"] == "value_error" else f" (given: {detail['input']!r})"
    return f"{where + ': ' if where else ''}{message[:1].lower()}{message[1:]}{given}"


def _nearest(key: str) -> str:
    """The nearest key that any section of a file knows."""
    known = {name for section in _sections(Section) for name in section.model_fields}
    near = difflib.get_close_matches(key, sorted(known), n=1)
    return f"; did you mean {near[0]!r}?" if near else ""


def _sections(kind: type[BaseModel]) -> Iterator[type[BaseModel]]:
    for section in kind.__subclasses__():
        yield section
        yield from _sections(section)
