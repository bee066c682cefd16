"""Loads the configuration: reads `fewshard.yaml` or uses the bundled models, and applies command options.

The commands of `fewshard` call it.
"""

from collections.abc import Callable
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from fewshard_core.yaml_reader import Location, YamlFile, read_yaml
from fewshard_models import hub
from fewshard_models.errors import ModelsError
from fewshard_serve.auth import read_tokens
from fewshard_serve.canary import CanaryConfig
from fewshard_serve.config import AuthConfig, FewshardConfig, ModelConfig, ServerConfig, TlsConfig
from fewshard_serve.errors import ConfigError
from fewshard_serve.group.settings import PLACEMENTS, ExpertsSettings
from fewshard_serve.tls import why_unusable


def zoo_dir() -> Path:
    """The folder of the bundled checkpoints; found without importing `fewshard_models` and thus torch."""
    spec = find_spec("fewshard_models")
    assert spec is not None, "fewshard_models is part of this distribution"
    assert spec.submodule_search_locations is not None, "fewshard_models is a package"
    return Path(next(iter(spec.submodule_search_locations))) / "zoo"


def zoo_names() -> list[str]:
    """The bundled checkpoints' names, sorted."""
    return sorted(config.parent.name for config in zoo_dir().glob("*/config.json"))


def bundled_config() -> FewshardConfig:
    """The configuration of all bundled models. Raises `ConfigError` if there are none."""
    names = zoo_names()
    if not names:
        raise ConfigError(
            f"this installation bundles no models ({zoo_dir()} is empty); "
            "name your own, as in `fewshard serve ./my-model`"
        )
    return FewshardConfig(models=tuple(ModelConfig(name=name, path=f"zoo:{name}") for name in names))


def load_config(path: str | Path) -> FewshardConfig:
    """Read `fewshard.yaml`. Relative paths in it are relative to the folder of the file.

    Raises `ConfigError` with the file, the line if it is known, what is wrong and what to do.
    """
    file = read_yaml(Path(path), ConfigError)
    return resolve(file.parse(FewshardConfig), file)


def resolve(config: FewshardConfig, file: YamlFile) -> FewshardConfig:
    """The configuration with absolute paths; relative ones are relative to the folder of the file.

    Raises `ConfigError` for a bundled model that does not exist, and for tokens or a certificate that cannot
    be used.
    """
    models = tuple(_resolve_model(model, file, ("models", i)) for i, model in enumerate(config.models))
    config = config.model_copy(update={"models": models, "auth": _resolve_auth(config.auth, file)})
    if config.server.tls is None:
        return config
    server = config.server.model_copy(update={"tls": _resolve_tls(config.server.tls, file)})
    return config.model_copy(update={"server": server})


def pinned(config: FewshardConfig) -> FewshardConfig:
    """The configuration, in which models of the Hugging Face Hub have their commits. Raises `ConfigError`."""
    return config.model_copy(update={"models": tuple(map(_pinned, config.models))})


def _pinned(model: ModelConfig) -> ModelConfig:
    try:
        return _with_paths(model, lambda path: hub.pinned(path) if path.startswith(hub.SCHEME) else path)
    except ModelsError as error:
        raise ConfigError(f"{model.name}: {error}") from None


def _with_paths(model: ModelConfig, changed: Callable[[str], str]) -> ModelConfig:
    paths: dict[str, Any] = {"path": changed(model.path)}
    if model.versions:
        paths["versions"] = {version: changed(path) for version, path in model.versions.items()}
    return model.model_copy(update=paths)


def _resolve_auth(auth: AuthConfig | None, file: YamlFile) -> AuthConfig | None:
    """Resolve the path of the tokens file, and read the file once to report mistakes before the start."""
    if auth is None:
        return None
    path = (file.path.parent / Path(auth.tokens_file).expanduser()).resolve()
    read_tokens(path)
    return AuthConfig(tokens_file=str(path))


def _resolve_tls(tls: TlsConfig, file: YamlFile) -> TlsConfig:
    paths = {name: _beside(file, path) for name, path in tls}
    wrong, why = why_unusable(**paths)
    if wrong:
        raise ConfigError(file.message(("server", "tls", wrong), why))
    return TlsConfig(**paths)


def _resolve_model(model: ModelConfig, file: YamlFile, at: Location) -> ModelConfig:
    def resolved(path: str) -> str:
        scheme, colon, name = path.partition(":")
        if scheme == "zoo" and name not in zoo_names():
            there = ", ".join(zoo_names()) or "none"
            raise ConfigError(
                file.message((*at, "path"), f"no bundled model {name!r}; the zoo holds: {there}")
            )
        return path if colon else _beside(file, path)

    more = {"experts": _resolve_experts(model.experts, file), "canary": _resolve_canary(model.canary, file)}
    return _with_paths(model, resolved).model_copy(update=more)


def _resolve_canary(canary: CanaryConfig | None, file: YamlFile) -> CanaryConfig | None:
    if canary is None or not canary.judge.labels_from:
        return canary
    judge = canary.judge.model_copy(update={"labels_from": _beside(file, canary.judge.labels_from)})
    return canary.model_copy(update={"judge": judge})


def _resolve_experts(experts: ExpertsSettings | None, file: YamlFile) -> ExpertsSettings | None:
    if experts is None or experts.placement in PLACEMENTS:
        return experts
    return replace(experts, placement=_beside(file, experts.placement))


def _beside(file: YamlFile, path: str) -> str:
    """An absolute path; relative paths are relative to the folder of the file."""
    return str((file.path.parent / Path(path).expanduser()).resolve())


def only(config: FewshardConfig, names: list[str]) -> FewshardConfig:
    """The configuration with only these models, in this order, and the cascades that consist of them.

    The name of a cascade selects its stages. Raises `ConfigError` for an unknown name.
    """
    by_name = {model.name: model for model in config.models}
    stages = {cascade.name: cascade.stages for cascade in config.cascades}
    wanted: list[str] = []
    for name in names:
        if name not in by_name and name not in stages:
            there = ", ".join([*by_name, *stages])
            raise ConfigError(f"no model named {name!r} in the configuration; there are: {there}")
        wanted += stages.get(name, (name,))
    if not names:
        raise ConfigError(f"no model is named; there are: {', '.join(by_name)}")
    cascades = tuple(each for each in config.cascades if set(each.stages) <= set(wanted))
    models = tuple(_shadowed_by(by_name[name], wanted) for name in dict.fromkeys(wanted))
    return config.model_copy(update={"models": models, "cascades": cascades})


def with_server(
    config: FewshardConfig, host: str | None = None, port: int | None = None, grpc_port: int | None = None
) -> FewshardConfig:
    """The configuration with another address; None keeps a configured value. Raises `ConfigError`."""
    asked = {"host": host, "port": port, "grpc_port": grpc_port}
    given = {key: value for key, value in asked.items() if value is not None}
    try:
        server = ServerConfig(**{**config.server.model_dump(exclude_unset=True), **given})
    except ValidationError as error:
        raise ConfigError(
            "; ".join(f"{_option(e['loc'])}{e['msg'].lower()}" for e in error.errors())
        ) from None
    return config.model_copy(update={"server": server})


def _shadowed_by(model: ModelConfig, names: list[str]) -> ModelConfig:
    """The model, without its shadow if that is not among the names."""
    if model.shadow is None or model.shadow.model in names:
        return model
    return model.model_copy(update={"shadow": None})


def _option(at: Location) -> str:
    return f"--{str(at[0]).replace('_', '-')}: " if at else ""
