"""`fewshard train`: run one recipe; resumable, with a progress bar."""

import argparse
from pathlib import Path
from typing import Any

from fewshard_serve.commands import recipe_options, show


def register(subparsers: Any) -> None:
    """Add the command; `cli` calls it."""
    parser = subparsers.add_parser(
        "train",
        help="train a model by a recipe",
        description="Train one model. Interrupted runs go on where they stopped when called again.",
    )
    parser.add_argument("recipe", metavar="RECIPE", help="sst2-dense, sst2-moe or cifar10-dense")
    parser.add_argument("--out", type=Path, help="where the checkpoint goes (default: RUN_DIR/RECIPE/model)")
    recipe_options.add(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Train and print the card's figures; returns 0."""
    from fewshard_models.recipes.registry import train

    card = train(
        args.recipe, recipe_options.workspace(args), args.out or args.run_dir / args.recipe / "model"
    )
    print(
        show.pairs(
            [
                ("accuracy", f"{card.accuracy:.2%} of {card.num_examples} ({card.dataset})"),
                ("F1", f"{card.f1:.4f}"),
            ]
        )
    )
    return 0
