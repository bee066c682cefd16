"""Reads and validates YAML files, and reports mistakes with their line and in plain words.

The server reads its configuration, its tokens and Ray Serve configurations with it; the load test reads its
scenarios. Only this module of the package needs pydantic and PyYAML.
"""

import difflib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args, get_origin, get_type_hints

import yaml
from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError

from fewshard_core.errors import FewshardError

Location = tuple[int | str, ...]
"""The path to a value: keys and list indices, as in ("models", 0, "batching")."""

Kind = TypeVar("Kind")


class Section(BaseModel):
    """The base of the classes that describe a file. They are frozen, and unknown keys are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True)


@dataclass(frozen=True, slots=True)
class Mistake:
    """One mistake in a file: its location and its description."""

    at: Location
    text: str


@dataclass(frozen=True, slots=True)
class YamlFile:
    """A file that is valid YAML.

    path: the file.
    data: its content.
    lines: the line, from 1, on which each key or list element begins.
    error: the class of the errors that are raised for wrong content.
    """

    path: Path
    data: Any
    lines: Mapping[Location, int]
    error: type[FewshardError]

    def message(self, at: Location, text: str) -> str:
        """`text` after the file's name and the line of `at`, or of the nearest parent with a known line."""
        known = next((at[:n] for n in range(len(at), -1, -1) if at[:n] in self.lines), None)
        line = "" if known is None else f", line {self.lines[known]}"
        return f"{self.path}{line}: {text}"

    def refusal(self, mistakes: Iterable[Mistake]) -> FewshardError:
        """The error to raise, with one line per mistake."""
        lines = (self.message(mistake.at, mistake.text) for mistake in mistakes)
        return self.error("\n".join(dict.fromkeys(lines)))

    def parse(self, kind: type[Kind]) -> Kind:
        """The content as a `kind`, a pydantic model or a dataclass. Raises `error`, with all mistakes."""
        try:
            return TypeAdapter(kind).validate_python(self.data)
        except ValidationError as error:
            raise self.refusal(explain(error, kind)) from None


def read_yaml(path: Path, error: type[FewshardError]) -> YamlFile:
    """Read a YAML file. Raises `error` if it cannot be read, is not YAML, or has a key twice."""
    try:
        loader = yaml.SafeLoader(path.read_text(encoding="utf-8"))
        node = loader.get_single_node()
        # Read the lines first: constructing the values expands the merge keys (`<<`) in the nodes.
        lines = {} if node is None else dict(_lines(node, ()))
        file = YamlFile(path, None, lines, error)
        if node is None:
            return file
        repeated = list(_repeated_keys(node, ()))
        data = loader.construct_document(node)
    except FileNotFoundError:
        raise error(f"{path}: no such file") from None
    except (OSError, UnicodeDecodeError) as problem:
        raise error(f"{path}: cannot be read: {problem}") from None
    except yaml.YAMLError as problem:
        raise error(f"{path}: not valid YAML: {' '.join(str(problem).split())}") from None
    except RecursionError:
        raise error(f"{path}: nested too deeply, or an alias that contains itself") from None
    if repeated:
        raise file.refusal(repeated[:1])
    return YamlFile(path, data, lines, error)


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


def _repeated_keys(node: yaml.Node, at: Location) -> Iterator[Mistake]:
    if isinstance(node, yaml.MappingNode):
        seen: set[str] = set()
        for key, value in node.value:
            name = str(key.value)
            if name in seen:
                yield Mistake((*at, name), f"the key {name!r} is given twice")
            seen.add(name)
            yield from _repeated_keys(value, (*at, name))
    elif isinstance(node, yaml.SequenceNode):
        for i, value in enumerate(node.value):
            yield from _repeated_keys(value, (*at, i))


def explain(error: ValidationError, kind: type, at: Location = ()) -> list[Mistake]:
    """Pydantic's errors about a `kind` at location `at`, in words for the author of the file."""
    return [_explain_one(dict(detail), kind, at) for detail in error.errors()]


def unknown_keys(kind: type, data: Any, at: Location = ()) -> Iterator[Mistake]:
    """The keys of `data`, at all depths, that `kind` does not have.

    This is for a `kind` that ignores unknown keys. A `Section` refuses them in pydantic's own validation.
    """
    if not isinstance(data, Mapping):
        return
    known = keys_of(kind)
    for key, value in data.items():
        if key not in known:
            yield Mistake((*at, str(key)), _unknown_key(str(key), at, [kind]))
            continue
        section = next(sections_in(known[key]), None)
        for place, part in enumerate(value) if isinstance(value, list) else [(None, value)]:
            here = (*at, key) if place is None else (*at, key, place)
            if section is not None:
                yield from unknown_keys(section, part, here)


def spell(at: Location) -> str:
    """("models", 0, "batching") as `models[0].batching`."""
    parts = (f"[{step}]" if isinstance(step, int) else f".{step}" for step in at)
    return "".join(parts).lstrip(".") or "the file"


def _explain_one(detail: dict[str, Any], root: type, at: Location) -> Mistake:
    steps: Location = detail["loc"]
    if detail["type"] in ("extra_forbidden", "unexpected_keyword_argument", "missing"):
        sections, where = _walk(root, steps[:-1])
        key, parent = str(steps[-1]), (*at, *where)
        if detail["type"] == "missing":
            return Mistake((*parent, key), f"{spell(parent)} lacks the key {key!r}")
        return Mistake((*parent, key), _unknown_key(key, parent, sections))
    sections, inside = _walk(root, steps)
    where = (*at, *inside)
    if detail["type"] in ("model_type", "model_attributes_type", "dataclass_type"):
        return Mistake(
            where, f"{spell(where)} must be a mapping with the keys {', '.join(_all_keys(sections))}"
        )
    if detail["type"] == "tuple_type":
        return Mistake(where, f"{spell(where)} must be a list (given: {detail['input']!r})")
    return Mistake(where, _invalid_value(detail, where))


def _unknown_key(key: str, parent: Location, sections: list[type]) -> str:
    known = _all_keys(sections)
    near = difflib.get_close_matches(key, known, n=1)
    hint = f"did you mean {near[0]!r}?" if near else f"known keys: {', '.join(known)}"
    return f"unknown key {key!r} in {spell(parent)}; {hint}"


def _invalid_value(detail: dict[str, Any], where: Location) -> str:
    text = str(detail["msg"]).removeprefix("Value error, ")
    shown = "" if detail["type"] == "value_error" else f" (given: {detail['input']!r})"
    place = f"{spell(where)}: " if where else ""
    return f"{place}{text[:1].lower()}{text[1:]}{shown}"


def _walk(root: type, steps: Location) -> tuple[list[type], Location]:
    """The classes that are possible at this path, and the path without the steps that pydantic adds.

    For a union, pydantic adds the chosen member, such as `open` in ("loads", 0, "open", "rates"). The file
    has no such step.
    """
    sections, where = [root], []
    for step in steps:
        if isinstance(step, str):
            if not any(step in keys_of(section) for section in sections):
                chosen = [section for section in sections if step in _tags(section)]
                if chosen:
                    sections = chosen
                    continue
            annotations = [keys_of(section)[step] for section in sections if step in keys_of(section)]
            sections = [found for annotation in annotations for found in sections_in(annotation)]
        where.append(step)
    return sections, tuple(where)


def keys_of(section: type) -> dict[str, Any]:
    """The keys of a section with their types."""
    if issubclass(section, BaseModel):
        return {name: field.annotation for name, field in section.model_fields.items()}
    types = get_type_hints(section)
    return {field.name: types[field.name] for field in fields(section)} if is_dataclass(section) else {}


def _all_keys(sections: list[type]) -> list[str]:
    return list(dict.fromkeys(key for section in sections for key in keys_of(section)))


def _tags(section: type) -> set[Any]:
    """The literals that may discriminate this section in a union."""
    return {
        word for kind in keys_of(section).values() if get_origin(kind) is Literal for word in get_args(kind)
    }


def sections_in(annotation: Any) -> Iterator[type]:
    """The sections in an annotation: `Section`, `Section | None`, `tuple[Section, ...]` or a union."""
    if isinstance(annotation, type) and (issubclass(annotation, BaseModel) or is_dataclass(annotation)):
        yield annotation
    for part in get_args(annotation):
        yield from sections_in(part)
