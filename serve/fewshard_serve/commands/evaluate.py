"""`fewshard evaluate`: accuracy and F1 of checkpoints on their task's held-out set."""

import argparse
from typing import Any

from fewshard_serve.commands import show


def register(subparsers: Any) -> None:
    """Add the command; `cli` calls it."""
    parser = subparsers.add_parser(
        "evaluate",
        help="measure a checkpoint's accuracy",
        description="Accuracy and F1 on SST-2's dev set or CIFAR-10's test set, read from FEWSHARD_DATA.",
    )
    parser.add_argument("paths", metavar="PATH", nargs="+", help="zoo:<name> or a checkpoint's directory")
    parser.add_argument("--limit", type=int, help="use the first rows only")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Print a line for each checkpoint; returns 0."""
    from fewshard_models.card import load_card
    from fewshard_models.checkpoint import resolve
    from fewshard_models.evaluate import evaluate

    rows = []
    for path in args.paths:
        directory = resolve(path)
        found, card = evaluate(directory, args.limit), load_card(directory)
        on_card = f"{card.accuracy:.5f}" if card else show.UNKNOWN
        figures = (str(len(found.labels)), f"{found.accuracy:.5f}", f"{found.f1:.5f}", on_card)
        rows.append([path, found.dataset, *figures])
    print(show.table(["checkpoint", "data", "n", "accuracy", "F1", "card says"], rows))
    return 0
