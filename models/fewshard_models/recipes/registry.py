"""The recipes by name; called by `fewshard train` and `fewshard zoo build`."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from fewshard_models.card import Card
from fewshard_models.checkpoint import load_config
from fewshard_models.errors import RecipeError
from fewshard_models.evaluate import write_card
from fewshard_models.recipes import cifar10, sst2
from fewshard_models.recipes.workspace import Workspace


@dataclass(frozen=True, slots=True)
class Recipe:
    """`train` writes a checkpoint into a folder; `start`: the recipe whose checkpoint it begins from."""

    name: str
    summary: str
    train: Callable[[Workspace, Path, Path | None], None]
    start: str | None = None


def _alone(train: Callable[[Workspace, Path], None]) -> Callable[[Workspace, Path, Path | None], None]:
    return lambda work, out, start: train(work, out)


def _from(train: Callable[[Workspace, Path, Path], None]) -> Callable[[Workspace, Path, Path | None], None]:
    def run(work: Workspace, out: Path, start: Path | None) -> None:
        assert start is not None
        train(work, out, start)

    return run


RECIPES = {
    recipe.name: recipe
    for recipe in (
        Recipe(
            "sst2-dense",
            "SST-2: 3-layer encoder distilled from a fine-tuned teacher",
            _alone(sst2.train_dense),
        ),
        Recipe(
            "sst2-moe",
            "SST-2: the dense encoder split into 4 experts a layer",
            _from(sst2.train_moe),
            "sst2-dense",
        ),
        Recipe("cifar10-dense", "CIFAR-10: 1.7M-parameter residual CNN", _alone(cifar10.train_dense)),
        Recipe("cifar10-dst", "RigL while channels die, then cut", _alone(cifar10.train_dynamic)),
        Recipe(
            "cifar10-static", "the dense CNN pruned, distilled", _from(cifar10.train_static), "cifar10-dense"
        ),
        Recipe(
            "cifar10-narrow", "dense, the MACs of cifar10-dst", _from(cifar10.train_narrow), "cifar10-dst"
        ),
    )
}


def train(name: str, work: Workspace, out: Path) -> Card:
    """Run a recipe, and before it the one it starts from where that has not been run in this workspace.

    Writes the checkpoint and its card to `out`. Raises RecipeError for an unknown name.
    """
    if name not in RECIPES:
        raise RecipeError(f"no recipe {name!r}; there are {', '.join(RECIPES)}")
    recipe = RECIPES[name]
    start = None if recipe.start is None else _starting_point(recipe.start, work)
    recipe.train(work, out, start)
    return write_card(out, name, f"tiny/{name}", work.seed, work.limit)


def _starting_point(name: str, work: Workspace) -> Path:
    """The checkpoint of recipe `name`; a CNN given as `work.init` stands in for the dense one."""
    if name == "cifar10-dense" and work.init and load_config(work.init).model_type == "fewshard_image":
        return work.init
    directory = work.run_dir / name / "model"
    if not (directory / "card.json").is_file():
        train(name, work, directory)
    return directory
