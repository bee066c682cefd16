"""The arguments that describe a server: models, a configuration file, and every key of it as an option.

The options come from the settings classes, so a new key is an option without further work. `serve`, `render`
and `doctor` use them.
"""

import argparse
import difflib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import NoneType
from typing import Any, Literal, get_args, get_origin

import yaml
from pydantic import ValidationError

from fewshard_core.yaml_reader import Mistake, YamlFile, explain, keys_of, sections_in
from fewshard_serve.commands.model_paths import is_config_file, named_models
from fewshard_serve.config import FewshardConfig, ModelConfig, ServerConfig
from fewshard_serve.config_file import bundled_config, load_config, only, resolve, with_server
from fewshard_serve.errors import ConfigError

USAGE = "fewshard {command} [MODEL ...] [fewshard.yaml] [options]"
MODEL_HELP = (
    "a checkpoint's directory, hf:<owner>/<name>[@<commit, tag or branch>] or zoo:<name>, which give its "
    "name, or NAME=…; default: every bundled model"
)
HERE = Path("the command line")
"""Stands for the file in messages. Relative paths are relative to its folder, the current one."""


@dataclass(frozen=True, slots=True)
class Option:
    """One key of the configuration as an option.

    at: the key's path in a model, or in the configuration.
    annotation: the type of its values.
    is_of_models: whether it is a key of a model; it then applies to every model.
    """

    at: tuple[str, ...]
    annotation: Any
    is_of_models: bool

    @property
    def name(self) -> str:
        return "--" + ".".join(self.at)

    @property
    def names(self) -> list[str]:
        """The option, and its form with dashes for underscores."""
        return list(dict.fromkeys([self.name, self.name.replace("_", "-")]))

    def value(self, text: str) -> Any:
        """The value as YAML reads it, or the text where the key takes text alone. Raises `ConfigError`."""
        if _takes_text_alone(self.annotation):
            return text
        try:
            return yaml.safe_load(text)
        except yaml.YAMLError:
            raise ConfigError(f"{self.name}: {text!r} is not valid YAML") from None


@cache
def all_options() -> tuple[Option, ...]:
    """Every key of a model but its name, path and versions, and every other key.

    The server's addresses have options of their own: --host, --port and --grpc-port.
    """
    of_models = _leaves(ModelConfig, (), True, {"name", "path", "versions", "split", "canary"})
    of_server = _leaves(ServerConfig, ("server",), False, {"host", "port", "grpc_port"})
    return (*of_models, *of_server, *_leaves(FewshardConfig, (), False, {"models", "cascades", "server"}))


def _leaves(section: type, at: tuple[str, ...], is_of_models: bool, without: set[str]) -> Iterator[Option]:
    for key, annotation in keys_of(section).items():
        if key in without:
            continue
        inner = next(sections_in(annotation), None)
        if inner is None:
            yield Option((*at, key), annotation, is_of_models)
        else:
            yield from _leaves(inner, (*at, key), is_of_models, set())


def _takes_text_alone(annotation: Any) -> bool:
    if get_origin(annotation) is Literal:
        return all(isinstance(word, str) for word in get_args(annotation))
    parts = get_args(annotation)
    if not parts:
        return annotation in (str, NoneType)
    return all(_takes_text_alone(part) for part in parts)


def add_arguments(parser: argparse.ArgumentParser, command: str) -> None:
    """Add the models, the file and all options to a command's parser."""
    parser.usage, parser.allow_abbrev = USAGE.format(command=command), False
    parser.add_argument("given", metavar="MODEL", nargs="*", help=MODEL_HELP)
    parser.add_argument(
        "--models", metavar="A,B", help="only these models of the configuration; default: every one"
    )
    parser.add_argument("--host", help="listen on this address instead of the configured one")
    parser.add_argument("--port", type=int, help="listen on this port instead of the configured one")
    parser.add_argument(
        "--grpc-port", "--grpc_port", type=int, help="listen for gRPC on this port; 0 for not at all"
    )
    for is_of_models, title in ((True, "keys of every model"), (False, "other keys")):
        options = [option for option in all_options() if option.is_of_models is is_of_models]
        names = ", ".join(option.name for option in options)
        about = f"{names}. As in the file, values are YAML; docs/configuration.md describes them."
        group = parser.add_argument_group(title, about)
        for option in options:  # listed in one paragraph: forty lines would hide the rest
            group.add_argument(*option.names, dest=option.name, help=argparse.SUPPRESS)
    parser.set_defaults(take_more=_take_more)


def _take_more(args: argparse.Namespace, more: Sequence[str]) -> None:
    """Take the models that stand behind options. Raises `ConfigError` for an unknown option."""
    unknown = next((text for text in more if text.startswith("-")), None)
    if unknown is None:
        args.given += more
        return
    known = ["--models", "--host", "--port", "--grpc_port", *(option.name for option in all_options())]
    name = unknown.partition("=")[0].replace("-", "_").replace("__", "--", 1)
    near = difflib.get_close_matches(name, known, n=1)
    by_end = [one for one in known if one.endswith(f".{name.lstrip('-')}")]
    hint = " or ".join(by_end or near)
    raise ConfigError(
        f"unknown option {unknown.partition('=')[0]}; {f'did you mean {hint}?' if hint else 'see --help'}"
    )


def configured(args: argparse.Namespace) -> FewshardConfig:
    """The configuration of the file and the models, or of the zoo, with the options' changes.

    Raises `ConfigError`.
    """
    config = with_options(_described(args.given), _values(args))
    if args.models is not None:
        config = only(config, [name.strip() for name in args.models.split(",") if name.strip()])
    return with_server(config, host=args.host, port=args.port, grpc_port=args.grpc_port)


def _described(given: Sequence[str]) -> FewshardConfig:
    files = [each for each in given if is_config_file(each)]
    if len(files) > 1:
        raise ConfigError(f"{' and '.join(files)} are two configurations; give one, and models beside it")
    paths = [each for each in given if each not in files]
    if not paths:
        return load_config(files[0]) if files else bundled_config()
    if not files:
        return FewshardConfig(models=tuple(named_models(paths)))
    config = load_config(files[0])
    names = [*(model.name for model in config.models), *(cascade.name for cascade in config.cascades)]
    return config.model_copy(update={"models": (*config.models, *named_models(paths, names))})


def _values(args: argparse.Namespace) -> dict[Option, Any]:
    given = ((option, getattr(args, option.name)) for option in all_options())
    return {option: option.value(text) for option, text in given if text is not None}


def with_options(config: FewshardConfig, values: Mapping[Option, Any]) -> FewshardConfig:
    """The configuration with these values; those of models go to every model. Raises `ConfigError`."""
    if not values:
        return config
    data = config.model_dump(exclude_unset=True)
    for option, value in values.items():
        for section in data["models"] if option.is_of_models else [data]:
            _put(section, option.at, value)
    try:
        return resolve(FewshardConfig.model_validate(data), YamlFile(HERE, data, {}, ConfigError))
    except ValidationError as error:
        mistakes = (_told(mistake) for mistake in explain(error, FewshardConfig))
        raise ConfigError("\n".join(dict.fromkeys(mistakes))) from None


def _put(section: dict[str, Any], at: Sequence[str], value: Any) -> None:
    *parents, key = at
    for step in parents:
        inner = section.get(step)
        section[step] = section = dict(inner) if isinstance(inner, Mapping) else {}
    section[key] = value


def _told(mistake: Mistake) -> str:
    """A mistake in the terms of the command line: the option in place of the key's path."""
    at = mistake.at[2:] if mistake.at[:1] == ("models",) else mistake.at
    if not at:
        return mistake.text
    option = Option(tuple(map(str, at)), None, False).name
    if mistake.text.endswith(f" lacks the key {at[-1]!r}"):
        return f"{option} is needed too"
    return f"{option}: {mistake.text.partition(': ')[2]}"
