"""Reads a YAML file with the line of every key, and puts pydantic's complaints in a user's words.

`config` calls it.
"""

import difflib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import yaml
from pydantic import BaseModel, ValidationError

from fewshard_serve.errors import ConfigError

Location = tuple[int | str, ...]
"""The way to a value: keys and list indices, as in ("models", 0, "batching")."""


@dataclass(frozen=True, slots=True)
class YamlFile:
    """A parsed file; `lines` gives the line, from 1, on which each key or list element begins."""

    path: Path
    data: Any
    lines: dict[Location, int]

    def message(self, at: Location, text: str) -> str:
        """`text` with the file and, as near as it is known, the line in front."""
        known = next((at[:n] for n in range(len(at), -1, -1) if at[:n] in self.lines), None)
        line = "" if known is None else f", line {self.lines[known]}"
        return f"{self.path}{line}: {text}"


def read_yaml(path: Path) -> YamlFile:
    """Raises `ConfigError` for a file that cannot be read, is not YAML, or gives a key twice."""
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such file") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read: {error}") from None
    try:
        node = yaml.compose(text, Loader=yaml.SafeLoader)
        lines = {} if node is None else dict(_lines(node, ()))
        file = YamlFile(path, yaml.safe_load(text), lines)
    except yaml.YAMLError as error:
        raise ConfigError(f"{path}: not valid YAML: {' '.join(str(error).split())}") from None
    except RecursionError:
        raise ConfigError(f"{path}: nested too deeply, or an alias that contains itself") from None
    if node is not None:
        _refuse_repeated_keys(node, (), file)
    return file


def _lines(node: yaml.Node, at: Location) -> Iterator[tuple[Location, int]]:
    yield at, node.start_mark.line + 1
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            here = (*at, str(key.value))
            yield from _lines(value, here)
            yield here, key.start_mark.line + 1
    elif isinstance(node, yaml.SequenceNode):
        for i, value in enumerate(node.value):
            yield from _lines(value, (*at, i))


def _refuse_repeated_keys(node: yaml.Node, at: Location, file: YamlFile) -> None:
    if isinstance(node, yaml.MappingNode):
        seen: set[str] = set()
        for key, value in node.value:
            if key.value in seen:
                raise ConfigError(file.message((*at, key.value), f"the key {key.value!r} is given twice"))
            seen.add(key.value)
            _refuse_repeated_keys(value, (*at, key.value), file)
    elif isinstance(node, yaml.SequenceNode):
        for i, value in enumerate(node.value):
            _refuse_repeated_keys(value, (*at, i), file)


def explain(file: YamlFile, error: ValidationError, root: type[BaseModel]) -> str:
    """One line a mistake, each with its line in the file."""
    return "\n".join(_explain_one(file, dict(detail), root) for detail in error.errors())


def _explain_one(file: YamlFile, detail: dict[str, Any], root: type[BaseModel]) -> str:
    at: Location = detail["loc"]
    words = _WORDS.get(detail["type"], _invalid_value)
    return file.message(at, words(detail, root))


def _unknown_key(detail: dict[str, Any], root: type[BaseModel]) -> str:
    *parent, key = detail["loc"]
    known = list(_section_at(root, tuple(parent)).model_fields)
    near = difflib.get_close_matches(str(key), known, n=1)
    hint = f"did you mean {near[0]!r}?" if near else f"known keys: {', '.join(known)}"
    return f"unknown key {str(key)!r} in {spell(tuple(parent))}; {hint}"


def _missing_key(detail: dict[str, Any], _root: type[BaseModel]) -> str:
    *parent, key = detail["loc"]
    return f"{spell(tuple(parent))} lacks the key {key!r}"


def _not_a_section(detail: dict[str, Any], root: type[BaseModel]) -> str:
    keys = ", ".join(_section_at(root, detail["loc"]).model_fields)
    return f"{spell(detail['loc'])} must be a mapping with the keys {keys}"


def _not_a_list(detail: dict[str, Any], _root: type[BaseModel]) -> str:
    return f"{spell(detail['loc'])} must be a list (given: {detail['input']!r})"


def _invalid_value(detail: dict[str, Any], _root: type[BaseModel]) -> str:
    text = str(detail["msg"]).removeprefix("Value error, ")
    shown = "" if detail["type"] == "value_error" else f" (given: {detail['input']!r})"
    where = f"{spell(detail['loc'])}: " if detail["loc"] else ""
    return f"{where}{text[:1].lower()}{text[1:]}{shown}"


_WORDS: dict[str, Callable[[dict[str, Any], type[BaseModel]], str]] = {
    "extra_forbidden": _unknown_key,
    "missing": _missing_key,
    "tuple_type": _not_a_list,
    "model_type": _not_a_section,
    "model_attributes_type": _not_a_section,
}


def spell(at: Location) -> str:
    """("models", 0, "batching") as `models[0].batching`."""
    parts = (f"[{step}]" if isinstance(step, int) else f".{step}" for step in at)
    return "".join(parts).lstrip(".") or "the file"


def _section_at(root: type[BaseModel], at: Location) -> type[BaseModel]:
    section = root
    for step in at:
        if isinstance(step, str):
            section = _section_in(section.model_fields[step].annotation)
    return section


def _section_in(annotation: Any) -> type[BaseModel]:
    """The model inside `Section`, `Section | None` or `tuple[Section, ...]`."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next(arg for arg in get_args(annotation) if isinstance(arg, type) and issubclass(arg, BaseModel))
