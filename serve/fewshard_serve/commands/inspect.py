"""`fewshard inspect`: shows a checkpoint's card, from its JSON files. Loads no weights."""

import argparse
import json
from pathlib import Path
from typing import Any

from fewshard_serve.commands import formatting
from fewshard_serve.config_file import zoo_dir, zoo_names
from fewshard_serve.errors import ConfigError


def register(subparsers: Any) -> None:
    """Add the command; `cli` calls it."""
    parser = subparsers.add_parser(
        "inspect",
        help="show a checkpoint's card",
        description="Show a checkpoint's kind, size, cost and accuracy, from its JSON files alone.",
    )
    parser.add_argument("path", metavar="PATH", help="zoo:<name> or a checkpoint's directory")
    parser.add_argument("--json", action="store_true", help="print the card as it is")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Print the card. Returns 0, or raises `ConfigError` if there is no checkpoint."""
    directory = checkpoint_dir(args.path)
    config = read_json(directory / "config.json")
    card = read_json(directory / "card.json") if (directory / "card.json").is_file() else {}
    print(json.dumps(card, indent=2, ensure_ascii=False) if args.json else describe(directory, config, card))
    return 0


def checkpoint_dir(path: str) -> Path:
    """Return the directory of `zoo:<name>` or a path. Raises `ConfigError` if it has no config.json."""
    scheme, colon, name = path.partition(":")
    if colon and scheme == "zoo":
        if name not in zoo_names():
            raise ConfigError(f"no bundled model {name!r}; the zoo holds: {', '.join(zoo_names()) or 'none'}")
        return zoo_dir() / name
    if colon and scheme == "hf":
        raise ConfigError(f"{path} is not on this machine; download it, then inspect its directory")
    directory = Path(path).expanduser()
    if not (directory / "config.json").is_file():
        raise ConfigError(f"{directory} is no checkpoint: it holds no config.json")
    return directory


def describe(directory: Path, config: dict[str, Any], card: dict[str, Any]) -> str:
    """Format the card as aligned lines. Without a card, show what config.json contains."""
    rows = [
        ("checkpoint", str(directory)),
        (
            "architecture",
            ", ".join(config.get("architectures") or [str(config.get("model_type", formatting.UNKNOWN))]),
        ),
        ("labels", ", ".join(map(str, (config.get("id2label") or {}).values())) or formatting.UNKNOWN),
    ]
    if quantised := (card.get("extra") or {}).get("quantised"):
        rows.append(("format", _quantised(quantised)))
    rows += _card_rows(card) if card else [("card", "none; accuracy, size and cost are not recorded")]
    return formatting.pairs(rows)


def _quantised(said: dict[str, Any]) -> str:
    compared = said.get("compared") or {}
    where = f"{compared.get('rows')} rows of {compared.get('data')}"
    calibrated = f"calibrated on {said.get('rows')} rows of {said.get('data')}"
    return f"{said.get('format')}, {calibrated}; {compared.get('flips')} labels of {where} differ from fp32"


def _card_rows(card: dict[str, Any]) -> list[tuple[str, str]]:
    """Return the rows whose first value is in the card."""
    examples = f"(n = {formatting.text(card.get('num_examples'))}, seed {formatting.text(card.get('seed'))})"
    rows = [
        ("name", formatting.text(card.get("name")), ""),
        ("task", formatting.text(card.get("task")), ""),
        ("kind", formatting.text(card.get("kind")), ""),
        ("parameters", formatting.count(card.get("parameters_total")), "in total"),
        ("active", formatting.count(card.get("parameters_active")), "for one item"),
        ("MACs", formatting.count(card.get("macs")), f"for {formatting.text(card.get('macs_input'))}"),
        ("sparsity", formatting.fraction(card.get("sparsity")), ""),
        (
            "accuracy",
            formatting.fraction(card.get("accuracy")),
            f"on {formatting.text(card.get('dataset'))} {examples}",
        ),
        ("F1", formatting.fraction(card.get("f1")), ""),
        ("recipe", formatting.text(card.get("recipe")), ""),
        ("commit", formatting.text(card.get("commit")), ""),
        ("golden inputs", str(len(card.get("golden") or [])), ""),
    ]
    return [
        (name, f"{value} {detail}".strip()) for name, value, detail in rows if value != formatting.UNKNOWN
    ]


def read_json(path: Path) -> dict[str, Any]:
    """Return a JSON object. Raises `ConfigError` if the file holds none."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path} cannot be read: {error}") from None
    if not isinstance(value, dict):
        raise ConfigError(f"{path} is not a JSON object")
    return value
