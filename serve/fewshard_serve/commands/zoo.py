"""`fewshard zoo build`: trains every model of a tier, in order; resumable."""

import argparse
from pathlib import Path
from typing import Any

from fewshard_serve.commands import formatting, recipe_options


def register(subparsers: Any) -> None:
    """Add the command and its only action; `cli` calls it."""
    parser = subparsers.add_parser("zoo", help="build the model zoo", description="Build the model zoo.")
    actions = parser.add_subparsers(metavar="ACTION", required=True)
    build = actions.add_parser("build", help="train every model of a tier")
    build.add_argument(
        "tier",
        choices=["tiny", "small", "paper"],
        help="tiny: the models that ship with the package; small: about an hour each on two cores; "
        "paper: the paper's own sizes, for one GPU",
    )
    build.add_argument("--out", type=Path, help="where the models go, TIER/NAME each (default: RUN_DIR/zoo)")
    recipe_options.add(build)
    build.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Train the missing models, then print the cards' figures; returns 0."""
    from fewshard_models.card import load_card
    from fewshard_models.recipes.registry import of_tier, train

    work, out = recipe_options.workspace(args), args.out or args.run_dir / "zoo"
    rows = []
    for recipe in of_tier(args.tier):
        folder = out / recipe.name
        card = load_card(folder) or train(recipe.name, work, folder)
        rows.append([recipe.name, card.accuracy_in_words, f"{card.parameters_total:,}", f"{card.macs:,}"])
    print(formatting.table(["model", "accuracy", "parameters", "MACs"], rows))
    return 0
