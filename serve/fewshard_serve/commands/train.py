"""`fewshard train`: runs one recipe, resumable, with a progress bar."""

import argparse
from pathlib import Path
from typing import Any

from fewshard_serve.commands import formatting, recipe_options


def register(subparsers: Any) -> None:
    """Add the command; `cli` calls it."""
    parser = subparsers.add_parser(
        "train",
        help="train a model by a recipe",
        description="Train one model. Interrupted runs go on where they stopped when called again.",
    )
    parser.add_argument(
        "recipe", metavar="RECIPE", help="TIER/NAME, for instance small/sst2-moe; without TIER: tiny's"
    )
    parser.add_argument(
        "--out", type=Path, help="where the checkpoint goes (default: RUN_DIR/TIER/NAME/model)"
    )
    recipe_options.add(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Train and print the card's figures; returns 0."""
    from fewshard_models.recipes.registry import model_folder, train

    work = recipe_options.workspace(args)
    card = train(args.recipe, work, args.out or model_folder(args.recipe, work))
    if card.accuracy is None:
        print(formatting.pairs([("accuracy", card.accuracy_in_words)]))
        return 0
    on = f"of {card.num_examples} ({card.dataset})"
    print(formatting.pairs([("accuracy", f"{card.accuracy_in_words} {on}"), ("F1", f"{card.f1:.4f}")]))
    return 0
