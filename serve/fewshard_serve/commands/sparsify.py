"""`fewshard sparsify`: prunes a checkpoint, and reports what was kept."""

import argparse
from pathlib import Path
from typing import Any

from fewshard_serve.commands import formatting
from fewshard_serve.errors import ConfigError

DESCRIPTION = """Prune a checkpoint of Fewshard's own architectures, without training. `magnitude` sets the
smallest weights to zero (--density); `structured` removes channels of a CNN, or heads and feed-forward units
of a text encoder, to a share of its MACs (--macs-share) or of its time as measured here (--time-share)."""


def register(subparsers: Any) -> None:
    """Add the command; `cli` calls it."""
    parser = subparsers.add_parser("sparsify", help="prune a checkpoint", description=DESCRIPTION)
    parser.add_argument("path", metavar="PATH", help="zoo:<name> or a checkpoint's directory")
    parser.add_argument("--out", type=Path, required=True, help="a new directory for the pruned checkpoint")
    parser.add_argument("--method", choices=["magnitude", "structured"], required=True)
    share = parser.add_mutually_exclusive_group(required=True)
    share.add_argument("--density", type=float, help="share of the weights to keep")
    share.add_argument("--macs-share", type=float, help="share of the MACs to keep")
    share.add_argument("--time-share", type=float, help="share of the measured time to keep")
    parser.add_argument(
        "--scope",
        choices=["global", "layer"],
        default="global",
        help="compare magnitudes over all layers or in each (default: global)",
    )
    parser.add_argument("--round-to", type=int, default=16, help="widths are multiples of this (default: 16)")
    parser.add_argument("--batch", type=int, default=64, help="items a batch when measuring (default: 64)")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Write the checkpoint and its report, and print it; returns 0. Checks the options first."""
    _check(args)
    from fewshard_models.checkpoint import resolve
    from fewshard_models.errors import DataError
    from fewshard_models.evaluation.accuracy import write_card
    from fewshard_models.sparsify.checkpoints import sparsify
    from fewshard_models.sparsify.report import HEADER

    source = resolve(args.path)
    report = sparsify(
        source,
        args.out,
        density=args.density,
        macs_share=args.macs_share,
        time_share=args.time_share,
        scope=args.scope,
        round_to=args.round_to,
        batch=args.batch,
    )
    print(formatting.table(HEADER, report.rows()))
    try:
        card = write_card(args.out, args.out.name, f"sparsify {args.method}", seed=0)
    except DataError as error:
        print(f"no card: accuracy was not measured ({error})")
    else:
        print(f"accuracy {card.accuracy:.2%} of {card.num_examples} ({card.dataset}), not trained since")
    return 0


def _check(args: argparse.Namespace) -> None:
    """Raise ConfigError for incompatible options, or a directory that exists."""
    if (args.density is None) == (args.method == "magnitude"):
        wanted = "--density" if args.method == "magnitude" else "--macs-share or --time-share"
        raise ConfigError(f"--method {args.method} takes {wanted}")
    if args.round_to < 1 or args.batch < 1:
        raise ConfigError("--round-to and --batch must be at least 1")
    if args.out.exists():
        raise ConfigError(f"{args.out} exists already; give --out a new directory")
