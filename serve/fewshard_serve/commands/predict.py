"""`fewshard predict`: one call to a running server, shown as a table or as the server's own JSON."""

import argparse
import json
import os
import sys
from pathlib import Path
from typing import Any

from fewshard_serve.client import DEFAULT_URL, TOKEN_VARIABLE, Client, Input, Retry
from fewshard_serve.commands import formatting
from fewshard_serve.errors import ConfigError

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp")
STDIN = "-"
INPUT_WIDTH = 60


def register(subparsers: Any) -> None:
    """Add the command; `cli` calls it."""
    parser = subparsers.add_parser(
        "predict",
        help="classify texts or images with a running server",
        description="Classify texts or image files with a running server, all in one request.",
    )
    parser.add_argument("model", metavar="MODEL", help="a model's name; `fewshard models` lists them")
    parser.add_argument(
        "inputs",
        metavar="INPUT",
        nargs="+",
        help=f"a text, an image file, or {STDIN} for one text a line from stdin",
    )
    parser.add_argument("--url", default=DEFAULT_URL, help="the server (default: %(default)s)")
    parser.add_argument(
        "--top-k", type=_positive, default=3, help="best labels to show (default: %(default)s)"
    )
    parser.epilog = f"A token, where the server asks for one, is taken from the variable {TOKEN_VARIABLE}."
    parser.add_argument("--json", action="store_true", help="print the server's answer as it is")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Send all inputs in one request and print the answer; returns 0."""
    shown = _given_inputs(args.inputs)
    given = [_as_input(value) for value in shown]
    with Client(args.url, retry=Retry(on_connect=False)) as client:
        answer = client.classify(args.model, given, top_k=args.top_k).raw
    print(json.dumps(answer, indent=2, ensure_ascii=False) if args.json else as_table(shown, answer))
    return 0


def as_table(shown: list[str], answer: dict[str, Any]) -> str:
    """One line an input and label; the request's usage and times below."""
    rows = [
        (formatting.shortened(value, INPUT_WIDTH) if rank == 0 else "", best["label"], f"{best['score']:.4f}")
        for value, labels in zip(shown, answer["predictions"], strict=True)
        for rank, best in enumerate(labels)
    ]
    return f"{formatting.table(('input', 'label', 'score'), rows)}\n\n{_footer(answer)}"


def _footer(answer: dict[str, Any]) -> str:
    usage, timings = answer.get("usage", {}), answer.get("timings_ms", {})
    parts = [f"{value} {unit.removesuffix('s') if value == 1 else unit}" for unit, value in usage.items()]
    parts += [f"{stage} {value:.2f} ms" for stage, value in timings.items()]
    return ", ".join(parts)


def _given_inputs(arguments: list[str]) -> list[str]:
    """The arguments, with `-` replaced by the lines of stdin."""
    given: list[str] = []
    for argument in arguments:
        given += [line.rstrip("\n") for line in sys.stdin] if argument == STDIN else [argument]
    if not given:
        raise ConfigError("stdin held no text to classify")
    return given


def _as_input(value: str) -> Input:
    """An image file, or else the text it is ("I love my cat.png" is a text)."""
    path = Path(value)
    has_suffix = path.suffix.lower() in IMAGE_SUFFIXES
    if not has_suffix or (" " in value and not path.is_file()):
        return value
    if not os.access(path, os.R_OK):
        raise ConfigError(f"the image {value} cannot be read; is it there?")
    return path


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError("must be at least 1")
    return value
