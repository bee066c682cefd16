"""A `fewshard.yaml` as a Ray Serve configuration, for `serve deploy` and KubeRay; no Ray is needed for that.

Each application is given the part of the configuration that it needs and no more, so that a change restarts
the replicas of those applications alone that it concerns.
"""

import os
from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import BaseModel, ConfigDict

from fewshard_serve.config import FewshardConfig, ModelConfig
from fewshard_serve.errors import ConfigError
from fewshard_serve.http.doors import DoorSettings
from fewshard_serve.rayserve.haproxy import BINARY, is_edited
from fewshard_serve.rayserve.logs import RAY_LOGGING
from fewshard_serve.rayserve.specs import (
    GATEWAY_APP,
    AppSpec,
    CascadeSpec,
    HostSpec,
    door_settings,
    plan_cascades,
    plan_hosts,
    reserve_gpus,
)

BUILDER = "fewshard_serve.app:build"
OUTSIDE_KEYS = frozenset({"name", "path", "device", "replicas", "experts", "admission"})
"""What an application has to know of models that another one serves."""


class AppArguments(BaseModel):
    """The `args` of one application: its name, and the configuration in which it is found."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    application: str
    config: FewshardConfig

    @property
    def is_gateway(self) -> bool:
        return self.application == GATEWAY_APP

    def plan(self) -> tuple[list[AppSpec], DoorSettings]:
        """Every host and cascade of the configuration, and what their doors need to know on this cluster."""
        doors = door_settings(self.config, is_behind_haproxy=is_edited(os.environ.get(BINARY, "")))
        hosts = reserve_gpus(plan_hosts(self.config, doors=doors))
        return [*hosts, *plan_cascades(self.config, hosts)], doors

    def find(self, apps: Sequence[AppSpec]) -> AppSpec:
        """The spec of this application among `apps`; raises `ConfigError`."""
        found = next((app for app in apps if app.app == self.application), None)
        if found is None:
            there = ", ".join([GATEWAY_APP, *(app.app for app in apps)])
            raise ConfigError(
                f"the configuration holds no application {self.application!r}; there are: {there}"
            )
        return found


def serve_config(config: FewshardConfig) -> dict[str, Any]:
    """The whole Serve configuration, as plain values."""
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
    """What every application needs: who may come in, the limits of a request, and what is told of it."""
    parts = {key: getattr(config, key) for key in ("auth", "limits", "logging", "metrics", "tracing")}
    given = config.model_fields_set
    return {key: _dump(part) for key, part in parts.items() if part is not None and key in given}


def _dump(section: BaseModel) -> dict[str, Any]:
    """What the user has written; defaults are left to the version that will run."""
    return section.model_dump(mode="json", exclude_unset=True, exclude_none=True)
