"""Compares plans, and adds models to a configuration or takes them out; `rolling_update` calls it.

Plain values alone.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from pydantic import ValidationError

from fewshard_serve.config import CascadeConfig, FewshardConfig, ModelConfig
from fewshard_serve.errors import ConfigError
from fewshard_serve.rayserve.deployment_plan import AppSpec, CascadeSpec, HostSpec, ModelSpec

Apps = Mapping[str, AppSpec]
"""Applications by their names."""


def names_of(apps: Iterable[AppSpec]) -> set[str]:
    """Return the names of the models and cascades that the applications serve."""
    return {model.name for app in apps for model in app.models}


def merged(running: Apps, planned: Sequence[AppSpec], only: Collection[str] | None) -> dict[str, AppSpec]:
    """Return the planned applications. Those that need no other replicas are the running objects themselves.

    only: models whose files are looked at; the others' count as unchanged. None for all models.
    """
    stamps = {model.key: model for app in running.values() for model in _loaded(app)}
    apps = [app if only is None else _with_stamps(app, stamps, only) for app in planned]
    return {app.app: _running_or(app, running.get(app.app)) for app in apps}


def without(apps: Apps, names: Collection[str]) -> list[AppSpec]:
    """Return the applications without these models; those that would have none are left out."""
    kept = [app if isinstance(app, CascadeSpec) else _only(app, names) for app in apps.values()]
    return [app for app in kept if names_of([app]) - set(names)]


def check_places(running: Apps, target: Apps) -> None:
    """Raise `ConfigError` if a model that stays would change to another application.

    Ray Serve sends requests to the application with the longest route, also while that has no replicas.
    """
    before, after = _places(running), _places(target)
    moving = sorted(name for name in before.keys() & after.keys() if before[name] != after[name])
    if moving:
        names = ", ".join(moving)
        raise ConfigError(
            f"{names} cannot get or give up processes of its own while it answers; leave `replicas` as it "
            "is, or unload the model and load it again"
        )


def _places(apps: Apps) -> dict[str, str]:
    return {model.name: app.app for app in apps.values() for model in app.models}


def with_model(config: FewshardConfig, name: str, source: FewshardConfig) -> FewshardConfig:
    """Return the configuration with the model or cascade of this name as `source` has it.

    Raises `ConfigError` if it is not there, or needs a model that `config` lacks.
    """
    models, cascades = (_by_name(part) for part in (source.models, source.cascades))
    if name not in models and name not in cascades:
        there = ", ".join([*models, *cascades])
        raise ConfigError(f"the configuration has no model {name!r}; it has: {there}")
    own, joint = _by_name(config.models), _by_name(config.cascades)
    own, joint = ({**kept} for kept in (own, joint))
    own.pop(name, None) if name in cascades else joint.pop(name, None)
    if name in models:
        own[name] = models[name]
    else:
        joint[name] = cascades[name]
    return _checked(config, own.values(), joint.values())


def without_model(config: FewshardConfig, name: str) -> FewshardConfig:
    """Return the configuration without a model or cascade.

    Raises `ConfigError` if it is not there, is the only one, or another needs it; that one is named.
    """
    served = [*_by_name(config.models), *_by_name(config.cascades)]
    if name not in served:
        raise ConfigError(f"no model {name!r} is loaded; there are: {', '.join(served)}")
    stage_of = [each.name for each in config.cascades if name in each.stages]
    shadow_of = [each.name for each in config.models if each.shadow and each.shadow.model == name]
    needing = [f"the cascade {each!r} has it as a stage" for each in stage_of]
    needing += [f"it is the shadow of {each!r}" for each in shadow_of]
    if needing:
        raise ConfigError(f"{name!r} is needed: {', '.join(needing)}; unload that first")
    if [model.name for model in config.models] == [name]:
        raise ConfigError(f"{name!r} is the only model; stop the server, or load another one first")
    models = [model for model in config.models if model.name != name]
    return _checked(config, models, [each for each in config.cascades if each.name != name])


def reverted(config: FewshardConfig, before: FewshardConfig, names: Collection[str]) -> FewshardConfig:
    """Return the configuration in which these models are as they were in `before`."""
    models = _as_before(config.models, before.models, names)
    return config.model_copy(
        update={"models": models, "cascades": _as_before(config.cascades, before.cascades, names)}
    )


def _as_before(now: Sequence[Any], before: Sequence[Any], names: Collection[str]) -> tuple[Any, ...]:
    old, new = ({each.name: each for each in part} for part in (before, now))
    back = {name: old[name] for name in old if name in names}
    return tuple({**{name: each for name, each in new.items() if name not in names}, **back}.values())


def _by_name(parts: Sequence[Any]) -> dict[str, Any]:
    return {each.name: each for each in parts}


def _checked(
    config: FewshardConfig, models: Iterable[ModelConfig], cascades: Iterable[CascadeConfig]
) -> FewshardConfig:
    try:
        return FewshardConfig(**{**dict(config), "models": tuple(models), "cascades": tuple(cascades)})
    except ValidationError as error:
        wrong = "; ".join(each["msg"].removeprefix("Value error, ") for each in error.errors())
        raise ConfigError(wrong) from None


def _loaded(app: AppSpec) -> tuple[ModelSpec, ...]:
    return app.models if isinstance(app, HostSpec) else ()


def _with_stamps(app: AppSpec, running: Mapping[str, ModelSpec], only: Collection[str]) -> AppSpec:
    def stamped(model: ModelSpec) -> ModelSpec:
        known = running.get(model.key)
        is_kept = known is not None and known.path == model.path and model.name not in only
        return replace(model, stamp=known.stamp) if is_kept and known is not None else model

    if isinstance(app, CascadeSpec):
        return app
    return replace(app, models=tuple(map(stamped, app.models)))


def _running_or(planned: AppSpec, running: AppSpec | None) -> AppSpec:
    return running if running is not None and _needs(running) == _needs(planned) else planned


def _needs(app: AppSpec) -> tuple[Any, ...]:
    """Return that of which a change needs other replicas: not how many processes there are beside it."""
    if isinstance(app, HostSpec):
        return (replace(app, num_neighbours=1),)
    own = app.config.stages
    stages = {model.name: host.app for host in app.hosts for model in host.models if model.name in own}
    return (app.config, stages, app.doors, app.metrics, app.drain_timeout_s)


def _only(host: HostSpec, without: Collection[str]) -> HostSpec:
    return replace(host, models=tuple(model for model in host.models if model.name not in without))
