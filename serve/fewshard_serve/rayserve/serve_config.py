"""Converts a `fewshard.yaml` to a Ray Serve configuration for `serve deploy` and KubeRay, and checks one.

`fewshard render` calls it, and `app.build` reads the arguments it writes. Only the check imports Ray. Each
application gets only the parts of the configuration that it needs, so that a change restarts only the
replicas it affects. The check exists because Ray ignores unknown keys silently.
"""

import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from fewshard_core.yaml_reader import Location, Mistake, Section, explain, read_yaml, unknown_keys
from fewshard_serve.config import FewshardConfig, ModelConfig
from fewshard_serve.errors import ConfigError
from fewshard_serve.http.middleware import AccessSettings
from fewshard_serve.rayserve.actor_process import RAY_LOGGING
from fewshard_serve.rayserve.deployment_plan import (
    GATEWAY_APP,
    AppSpec,
    CascadeSpec,
    HostSpec,
    door_settings,
    plan_cascades,
    plan_hosts,
)
from fewshard_serve.rayserve.haproxy import BINARY, is_edited
from fewshard_serve.rayserve.resource_shares import reserve_gpus

BUILDER = "fewshard_serve.app:build"
OUTSIDE_KEYS = frozenset({"name", "path", "device", "replicas", "experts", "admission"})
"""The keys that an application needs of models which another application serves."""


class AppArguments(Section):
    """The `args` of one application: its name, and the configuration that defines it."""

    application: str
    config: FewshardConfig

    @property
    def is_gateway(self) -> bool:
        return self.application == GATEWAY_APP

    def plan(self) -> tuple[list[AppSpec], AccessSettings]:
        """Return every host and cascade of the configuration, and the access settings for this cluster."""
        is_behind_haproxy = is_edited(os.environ.get(BINARY, ""))
        doors = door_settings(self.config, is_behind_haproxy=is_behind_haproxy, is_on_cluster=True)
        hosts = reserve_gpus(plan_hosts(self.config, doors=doors))
        return [*hosts, *plan_cascades(self.config, hosts)], doors

    def find(self, apps: Sequence[AppSpec]) -> AppSpec:
        """Return the spec of this application among `apps`. Raises `ConfigError`."""
        found = next((app for app in apps if app.app == self.application), None)
        if found is None:
            there = ", ".join([GATEWAY_APP, *(app.app for app in apps)])
            raise ConfigError(
                f"the configuration holds no application {self.application!r}; there are: {there}"
            )
        return found


def serve_config(config: FewshardConfig) -> dict[str, Any]:
    """Return the whole Serve configuration, as plain values."""
    hosts = plan_hosts(config)
    cascades = plan_cascades(config, hosts)
    return {
        "proxy_location": "EveryNode",
        "http_options": {"host": config.server.host, "port": config.server.port},
        "logging_config": {**RAY_LOGGING, "encoding": config.logging.format.upper()},
        "applications": [
            *(_application(host.app, host.route_prefix, _of_host(config, host)) for host in hosts),
            *(_application(each.app, each.route_prefix, _of_cascade(config, each)) for each in cascades),
            _application(GATEWAY_APP, "/", _of_gateway(config)),
        ],
    }


def _application(name: str, route_prefix: str, config: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "name": name,
        "route_prefix": route_prefix,
        "import_path": BUILDER,
        "args": {"application": name, "config": dict(config)},
    }


def _of_host(config: FewshardConfig, host: HostSpec) -> dict[str, Any]:
    own = {model.name for model in host.models}
    shadows = {model.shadow.model for model in host.models if model.shadow} - own
    models = [_dump(model) for model in config.models if model.name in own]
    models += [_outside(model) for model in config.models if model.name in shadows]
    return {"models": models, **_common(config)}


def _of_cascade(config: FewshardConfig, cascade: CascadeSpec) -> dict[str, Any]:
    (own,) = (each for each in config.cascades if each.name == cascade.name)
    models = [_outside(model) for model in config.models if model.name in own.stages]
    return {"models": models, "cascades": [_dump(own)], **_common(config)}


def _of_gateway(config: FewshardConfig) -> dict[str, Any]:
    parts: dict[str, Any] = {"models": [_outside(model) for model in config.models]}
    if config.cascades:
        parts["cascades"] = [_dump(cascade) for cascade in config.cascades]
    if "server" in config.model_fields_set:
        parts["server"] = _dump(config.server)
    return {**parts, **_common(config)}


def _outside(model: ModelConfig) -> dict[str, Any]:
    return {key: value for key, value in _dump(model).items() if key in OUTSIDE_KEYS}


def _common(config: FewshardConfig) -> dict[str, Any]:
    """Return what every application needs."""
    return _dump(config, {"auth", "callers", "cors", "limits", "logging", "metrics", "tracing"})


def _dump(section: BaseModel, keys: set[str] | None = None) -> dict[str, Any]:
    """Return the values that the user wrote for these keys. The version that runs fills in defaults."""
    return section.model_dump(mode="json", include=keys, exclude_unset=True, exclude_none=True)


def check_serve_config(path: Path) -> int:
    """Return the number of applications. Raises `ConfigError` with a line for every mistake. Imports ray."""
    from ray.serve.schema import ServeDeploySchema

    file = read_yaml(path, ConfigError)
    found = list(unknown_keys(ServeDeploySchema, file.data)) or _invalid(ServeDeploySchema, file.data)
    if not found:
        for number, app in enumerate(file.data["applications"]):
            found += _mistakes_of(app, ("applications", number))
    if found:
        raise file.refusal(found)
    return len(file.data["applications"])


def _invalid(kind: type[BaseModel], data: Any, at: Location = ()) -> list[Mistake]:
    try:
        kind.model_validate(data)
    except ValidationError as error:
        return explain(error, kind, at)
    return []


def _mistakes_of(app: Mapping[str, Any], at: Location) -> Iterator[Mistake]:
    """Yield mistakes in the arguments and deployment names of one of our applications."""
    if app["import_path"] != BUILDER:
        return
    args = app.get("args", {})
    found = _invalid(AppArguments, args, (*at, "args"))
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
