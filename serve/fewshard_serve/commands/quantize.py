"""`fewshard quantize`: a checkpoint in 8 bits, with what it lost."""

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fewshard_serve.commands import formatting
from fewshard_serve.errors import ConfigError

if TYPE_CHECKING:
    from fewshard_models.classifier.network import NetworkClassifier
    from fewshard_models.data.items import Items
    from fewshard_models.evaluation.quantisation import Quantised

DESCRIPTION = """Write a checkpoint whose linear layers, experts or convolutions hold weights and inputs in 8
bits (dtype int8), for CPUs with VNNI. The ranges of the inputs are taken from a file of ordinary items; rows
that are not needed for that, or those of --compare, tell what was lost. Nothing is trained."""


def register(subparsers: Any) -> None:
    """Add the command; `cli` calls it."""
    parser = subparsers.add_parser("quantize", help="make an 8-bit checkpoint", description=DESCRIPTION)
    parser.add_argument("path", metavar="PATH", help="zoo:<name>, hf:<owner>/<name> or a directory")
    parser.add_argument(
        "--data",
        type=Path,
        required=True,
        metavar="FILE",
        help="lines of `text[<TAB>label]` or `image file[<TAB>label]` under a header, or an .npz of `images`",
    )
    parser.add_argument("--out", type=Path, required=True, help="a new directory for the 8-bit checkpoint")
    parser.add_argument("--limit", type=int, default=2048, help="rows to calibrate on (default: %(default)s)")
    parser.add_argument(
        "--compare", type=Path, metavar="FILE", help="rows to compare on (default: the other rows of --data)"
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Write the checkpoint and print what it lost; returns 0. Checks the options first."""
    if args.limit < 1:
        raise ConfigError("--limit must be at least 1")
    if args.out.exists():
        raise ConfigError(f"{args.out} exists already; give --out a new directory")
    from fewshard_models.checkpoint import resolve
    from fewshard_models.data.items import read_items
    from fewshard_models.evaluation.quantisation import quantise

    def read(model: "NetworkClassifier") -> "tuple[Items, Items | None]":
        files = [
            each and read_items(each, model.info.task, model.info.labels)
            for each in (args.data, args.compare)
        ]
        return files[0], files[1]

    found = quantise(resolve(args.path), args.out, read, args.limit, _say)
    print(formatting.pairs(_described(found, args.out)))
    return 0


def _described(found: "Quantised", out: Path) -> list[tuple[str, str]]:
    compared = found.compared
    where = f"{compared.rows} rows of {compared.data}" + (", the same" if compared.calibrated_on else "")
    lines = [
        ("written", f"{out}: {found.layers} layers in {found.format}"),
        ("calibrated", f"{found.rows} rows of {found.data}, codes by {found.rule}"),
        ("compared", where),
        ("labels", f"{compared.flips} of {compared.rows} differ from fp32"),
        ("logits", f"differ by up to {compared.largest_difference}"),
    ]
    if compared.accuracy is not None and compared.accuracy_fp32 is not None:
        lost = compared.accuracy_fp32 - compared.accuracy
        shares = f"{compared.accuracy:.2%}, fp32 {compared.accuracy_fp32:.2%}"
        lines.append(("accuracy", f"{shares}: {100 * lost:.2f} points lost"))
    return lines


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
