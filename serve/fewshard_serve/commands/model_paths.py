"""Models named on the command line: checks their paths and gives them names; `config_options` calls it."""

import re
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError

from fewshard_serve.commands.inspect import checkpoint_dir
from fewshard_serve.config import ModelConfig
from fewshard_serve.config_file import zoo_names
from fewshard_serve.errors import ConfigError

MAX_NAME = 128
MAX_SHOWN = 5
WEIGHTS = (".safetensors", ".bin", ".pt", ".pth", ".gguf", ".onnx")
FORMS = "give a checkpoint's directory, hf:<owner>/<name>, zoo:<name> or a fewshard.yaml"


@dataclass(frozen=True, slots=True)
class _Given:
    """One model of the command line: as it was given, its name ("" if not given), and its checked path.

    place: the path that names it, in which links have their own names.
    """

    text: str
    name: str
    path: str
    place: str

    @property
    def last_part(self) -> str:
        return _slug(re.split(r"[/:]", self.place)[-1])

    @property
    def last_two_parts(self) -> str:
        return _slug("-".join(re.split(r"[/:]", self.place)[-2:]))


def is_config_file(given: str) -> bool:
    """Whether an argument is a configuration file, rather than a model."""
    path = Path(given).expanduser()
    if path.is_file():
        return path.suffix not in WEIGHTS and path.name != "config.json"
    return path.suffix in (".yaml", ".yml") and not path.is_dir()


def named_models(given: Sequence[str], taken: Iterable[str] = ()) -> list[ModelConfig]:
    """Return the models of these paths, or of NAME=PATH.

    A name is the last part of the path. Models whose paths end alike get the part before as well. Raises
    `ConfigError` for a path without a checkpoint, and for a name that is in `taken`, given twice or reserved.
    """
    models = [_parsed(each) for each in given]
    names = _names(models)
    used = set(taken)
    for model, name in zip(models, names, strict=True):
        if name in used:
            raise ConfigError(
                f"{model.text}: there is a model {name!r} already; name this one, as in other={model.path}"
            )
        used.add(name)
    return [_configured(model, name) for model, name in zip(models, names, strict=True)]


def _parsed(given: str) -> _Given:
    name, equals, path = given.partition("=")
    if not equals or "/" in name or ":" in name or Path(given).expanduser().exists():
        name, path = "", given
    if not path:
        raise ConfigError(f"{given!r} names no model; {FORMS}")
    if path.startswith("zoo:"):
        checkpoint_dir(path)
    if path.startswith(("hf:", "zoo:")):
        return _Given(given, name, path, path.partition("@")[0])
    absolute = Path(path).expanduser().absolute()
    directory = _directory(path)
    return _Given(given, name, directory, directory if ".." in absolute.parts else str(absolute))


def _directory(given: str) -> str:
    """The absolute path of a checkpoint's directory. Raises `ConfigError`, with what may have been meant."""
    path = Path(given).expanduser()
    if (path / "config.json").is_file():
        return str(path.resolve())
    if path.is_dir():
        raise ConfigError(f"{given} holds no config.json, so it is no checkpoint{_checkpoints_below(path)}")
    if path.is_file():
        raise ConfigError(f"{given} is a file; give the directory that holds it and config.json")
    if given in zoo_names():
        raise ConfigError(f"there is no directory {given!r}; did you mean the bundled zoo:{given}?")
    if re.fullmatch(r"[\w.-]+/[\w.-]+", given) and not given.startswith("."):
        raise ConfigError(f"there is no directory {given!r}; did you mean hf:{given}?")
    raise ConfigError(f"there is no directory {given!r}; {FORMS}")


def _checkpoints_below(path: Path) -> str:
    found = sorted(str(config.parent) for config in path.glob("*/config.json"))
    more = ", …" if len(found) > MAX_SHOWN else ""
    return f"; these are: {', '.join(found[:MAX_SHOWN])}{more}" if found else f"; {FORMS}"


def _names(models: Sequence[_Given]) -> list[str]:
    """The given names, else the last part of each path, with the part before where two would be the same."""
    short = [model.name or model.last_part for model in models]
    return [
        model.name or (model.last_two_parts if short.count(name) > 1 else name)[:MAX_NAME]
        for model, name in zip(models, short, strict=True)
    ]


def _slug(text: str) -> str:
    """`text` in the letters of a model's name; "" if it has none of them."""
    plain = unicodedata.normalize("NFKD", text).encode("ascii", "ignore").decode()
    return re.sub(r"[^A-Za-z0-9._-]+", "-", plain).strip("-._")


def _configured(model: _Given, name: str) -> ModelConfig:
    if not name:
        raise ConfigError(f"{model.text}: its path gives no name; name it, as in my-model={model.path}")
    try:
        return ModelConfig(name=name, path=model.path)
    except ValidationError as error:
        reason = error.errors()[0]["msg"].removeprefix("Value error, ")
        raise ConfigError(f"{model.text}: {reason}; name it, as in my-model={model.path}") from None
