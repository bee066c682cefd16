"""Checks a Ray Serve configuration before a cluster gets it: Ray itself takes unknown keys in silence.

`fewshard render --check` calls it.
"""

import difflib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, get_args

from pydantic import BaseModel, ValidationError

from fewshard_serve.errors import ConfigError
from fewshard_serve.rayserve.serveconfig import BUILDER, AppArguments
from fewshard_serve.rayserve.specs import GATEWAY_APP
from fewshard_serve.yamlfile import Location, YamlFile, spell


@dataclass(frozen=True, slots=True)
class Mistake:
    """What is wrong, and where."""

    at: Location
    text: str


def check_serve_config(file: YamlFile) -> int:
    """The number of applications; raises `ConfigError` with a line for every mistake. Imports ray."""
    from ray.serve.schema import ServeDeploySchema

    found = list(unknown_keys(ServeDeploySchema, file.data, ())) or list(
        _invalid(ServeDeploySchema, file.data)
    )
    if not found:
        for number, app in enumerate(file.data["applications"]):
            found += _mistakes_of(app, ("applications", number))
    if found:
        raise ConfigError("\n".join(file.message(one.at, one.text) for one in found))
    return len(file.data["applications"])


def unknown_keys(model: type[BaseModel], data: Any, at: Location) -> Iterator[Mistake]:
    """Keys of `data` and of whatever is inside it that `model` does not have."""
    if not isinstance(data, Mapping):
        return
    for key, value in data.items():
        if key not in model.model_fields:
            near = difflib.get_close_matches(str(key), list(model.model_fields), n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"known keys: {', '.join(model.model_fields)}"
            yield Mistake((*at, str(key)), f"unknown key {str(key)!r} in {spell(at)}; {hint}")
            continue
        section = _section_in(model.model_fields[key].annotation)
        for place, part in enumerate(value) if isinstance(value, list) else [(None, value)]:
            here = (*at, key) if place is None else (*at, key, place)
            if section is not None:
                yield from unknown_keys(section, part, here)


def _section_in(annotation: Any) -> type[BaseModel] | None:
    """The model somewhere inside `Section`, `Section | None`, `Dict | Section` or `List[Section]`."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    inside = (_section_in(part) for part in get_args(annotation))
    return next((section for section in inside if section is not None), None)


def _invalid(model: type[BaseModel], data: Any, at: Location = ()) -> Iterator[Mistake]:
    try:
        model.model_validate(data)
    except ValidationError as error:
        for detail in error.errors():
            where = (*at, *detail["loc"])
            yield Mistake(where, f"{spell(where)}: {str(detail['msg']).removeprefix('Value error, ')}")


def _mistakes_of(app: Mapping[str, Any], at: Location) -> Iterator[Mistake]:
    """In the arguments of an application of ours, and in the names of its deployments."""
    if app["import_path"] != BUILDER:
        return
    args = app.get("args", {})
    found = list(unknown_keys(AppArguments, args, (*at, "args")))
    found = found or list(_invalid(AppArguments, args, (*at, "args")))
    yield from found
    if not found:
        yield from _disagreements(app, AppArguments.model_validate(args), at)


def _disagreements(app: Mapping[str, Any], args: AppArguments, at: Location) -> Iterator[Mistake]:
    name, prefix, deployment = args.application, "/", GATEWAY_APP
    if not args.is_gateway:
        try:
            prefix, deployment = args.find(args.plan()[0]).route_prefix, "host"
        except ConfigError as error:
            yield Mistake((*at, "args", "application"), str(error))
            return
    if app.get("name") != name:
        yield Mistake(
            (*at, "name"), f"the name must be that of args.application, {name!r}: others call it so"
        )
    if app.get("route_prefix", "/") != prefix:
        yield Mistake((*at, "route_prefix"), f"the route_prefix of {name!r} must be {prefix!r}")
    for number, each in enumerate(app.get("deployments", [])):
        if each["name"] != deployment:
            here = (*at, "deployments", number, "name")
            yield Mistake(
                here, f"{name!r} has no deployment {each['name']!r}; its only one is {deployment!r}"
            )
