"""The options shared by the commands that run recipes, and the workspace they describe."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fewshard_models.recipes.workspace import Workspace


def add(parser: argparse.ArgumentParser) -> None:
    """Add --run-dir, --init, --teacher, --seed, --epochs and --limit."""
    parser.add_argument("--run-dir", type=Path, default=Path("runs"), help="phases and their resumable state")
    parser.add_argument("--init", type=Path, help="directory of a pretrained encoder; text recipes need it")
    parser.add_argument(
        "--teacher",
        type=Path,
        help="directory of a larger pretrained encoder of any kind; it is fine-tuned and taught from",
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--epochs", type=int, help="instead of the recipe's own, for a trial")
    parser.add_argument("--limit", type=int, help="use the first rows of each data set only, for a trial")


def workspace(args: argparse.Namespace) -> "Workspace":
    """Return the workspace that the options describe. Prepares the process for training."""
    from fewshard_models.allocator import keep_freed_memory
    from fewshard_models.recipes.workspace import Workspace

    keep_freed_memory()
    return Workspace(args.run_dir, args.seed, args.init, args.teacher, args.limit, args.epochs)
