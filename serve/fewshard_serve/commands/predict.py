"""`fewshard predict`: classifies with a running server, or with a checkpoint and no server.

The output has the same form either way: a table, or the JSON of the server's answer.
"""

import argparse
import json
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fewshard_serve.client import DEFAULT_URL, TOKEN_VARIABLE, Client, Retry
from fewshard_serve.commands import formatting
from fewshard_serve.errors import ConfigError

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp")
STDIN = "-"
INPUT_WIDTH = 60


def register(subparsers: Any) -> None:
    """Add the command; `cli` calls it."""
    parser = subparsers.add_parser(
        "predict",
        help="classify texts or images with a running server, or with a checkpoint",
        description="Classify texts or image files: with a running server, all in one request, where MODEL "
        "is the name of a served model; in this process, without a server, where MODEL is a checkpoint.",
    )
    parser.add_argument(
        "model",
        metavar="MODEL",
        help="a served model's name (`fewshard models` lists them), or a checkpoint: zoo:<name>, "
        "hf:<owner>/<name> or a directory, which is written with a slash (./mine)",
    )
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
    """Classify all inputs and print the answer; returns 0."""
    shown = _given_inputs(args.inputs)
    given = [_as_input(value) for value in shown]
    answer = _offline(args, given) if is_checkpoint(args.model) else _online(args, given)
    print(json.dumps(answer, indent=2, ensure_ascii=False) if args.json else as_table(shown, answer))
    return 0


def is_checkpoint(model: str) -> bool:
    """Return whether the argument names a checkpoint. A bare name always means a served model."""
    return model.startswith(("zoo:", "hf:")) or "/" in model or model in (".", "..")


def _online(args: argparse.Namespace, given: Sequence[str | Path]) -> dict[str, Any]:
    with Client(args.url, retry=Retry(on_connect=False)) as client:
        return client.classify(args.model, list(given), top_k=args.top_k).raw


def _offline(args: argparse.Namespace, given: Sequence[str | Path]) -> dict[str, Any]:
    """Return what a server would answer, without a queue. Raises CheckpointError or UnusableInput."""
    os.environ.setdefault("TQDM_DISABLE", "1")  # transformers would draw progress bars while it loads
    from fewshard_core.values import EncodedImage, TextInput
    from fewshard_models.classifier.load import load
    from fewshard_serve.core import Classified, Timings
    from fewshard_serve.protocol.classify import ClassifyOptions, encode_classify

    model = load(args.model)
    model.self_check()
    began_at = time.perf_counter()
    items = model.prepare(
        [EncodedImage(each.read_bytes()) if isinstance(each, Path) else TextInput(each) for each in given]
    )
    prepared_at = time.perf_counter()
    logits = model.run_all(items)
    timings = Timings(prepared_at - began_at, 0.0, time.perf_counter() - prepared_at)
    tokens = tuple(item.tokens for item in items if item.tokens is not None)
    answer = Classified(logits, sum(item.num_tokens for item in items), timings, tokens=tokens)
    found: dict[str, Any] = json.loads(encode_classify(ClassifyOptions(top_k=args.top_k), model.info, answer))
    return found


def as_table(shown: list[str], answer: dict[str, Any]) -> str:
    """Return one line for each input and label, then usage and times of the request."""
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
    """Return the arguments, with `-` replaced by the lines of stdin."""
    given: list[str] = []
    for argument in arguments:
        given += [line.rstrip("\n") for line in sys.stdin] if argument == STDIN else [argument]
    if not given:
        raise ConfigError("stdin held no text to classify")
    return given


def _as_input(value: str) -> str | Path:
    """Return an image's path, else the text ("I love my cat.png" is a text)."""
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
