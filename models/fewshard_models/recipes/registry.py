"""All recipes by tier and name. Called by `fewshard train` and `fewshard zoo build`."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from fewshard_models.card import Card, load_card
from fewshard_models.checkpoint import load_config
from fewshard_models.errors import RecipeError
from fewshard_models.evaluation.accuracy import write_card
from fewshard_models.recipes import cifar10, sst2, tiers
from fewshard_models.recipes.tiers import PAPER, SMALL, TINY, ImageTier, TextRecipe
from fewshard_models.recipes.workspace import Workspace

TIERS = {
    "tiny": "the models that ship with the package",
    "small": "about an hour each on two cores",
    "paper": "the paper's own sizes, for one GPU",
}


@dataclass(frozen=True, slots=True)
class Recipe:
    """One recipe.

    name: full name, TIER/MODEL.
    summary: one line about it.
    train: `train(work, out, *starts)` writes a checkpoint to the folder `out`; it returns the reason why its
        accuracy cannot be measured, or None.
    starts: full names of the recipes whose checkpoints `train` takes.
    """

    name: str
    summary: str
    train: Callable[..., str | None]
    starts: tuple[str, ...] = ()

    @property
    def tier(self) -> str:
        return self.name.partition("/")[0]

    @property
    def model(self) -> str:
        """The name without the tier."""
        return self.name.partition("/")[2]


def _student(settings: TextRecipe) -> Callable[..., str | None]:
    return partial(sst2.train_student, settings)


def _image_recipes(tier: ImageTier) -> tuple[Recipe, ...]:
    dense, dynamic = f"{tier.name}/cifar10-dense", f"{tier.name}/cifar10-dst"
    return (
        Recipe(dense, "residual CNN", partial(cifar10.train_dense, tier)),
        Recipe(dynamic, "RigL while channels die, then cut", partial(cifar10.train_dynamic, tier), (dense,)),
        Recipe(
            f"{tier.name}/cifar10-static",
            "the dense CNN pruned, distilled",
            partial(cifar10.train_static, tier),
            (dense,),
        ),
        Recipe(
            f"{tier.name}/cifar10-narrow",
            "dense, the MACs of cifar10-dst",
            partial(cifar10.train_narrow, tier),
            (dense, dynamic),
        ),
    )


RECIPES = {
    recipe.name: recipe
    for recipe in (
        Recipe(
            "tiny/sst2-dense",
            "3-layer encoder distilled from a fine-tuned teacher",
            _student(tiers.TINY_DENSE),
        ),
        Recipe(
            "tiny/sst2-moe", "its units split into 4 experts", _student(tiers.TINY_MOE), ("tiny/sst2-dense",)
        ),
        Recipe("tiny/sst2-narrow", "as dense, the MACs of tiny/sst2-moe", _student(tiers.TINY_NARROW)),
        *_image_recipes(TINY),
        Recipe(
            "small/sst2-dense", "6-layer encoder taught by three of its kind", _student(tiers.SMALL_DENSE)
        ),
        Recipe("small/sst2-narrow", "3 layers, 0.45 of the dense MACs", _student(tiers.SMALL_NARROW)),
        Recipe(
            "small/sst2-moe",
            "the narrow one's middle layer upcycled to 4 experts",
            _student(tiers.SMALL_MOE),
            ("small/sst2-narrow",),
        ),
        *_image_recipes(SMALL),
        Recipe("paper/sst2-dense", "BERT-base", partial(sst2.train_fine_tuned, tiers.PAPER_DENSE)),
        Recipe("paper/sst2-moe", "6 layers of 21 experts of 2,304 units", _student(tiers.PAPER_MOE)),
        *_image_recipes(PAPER),
    )
}


def find(name: str) -> Recipe:
    """The recipe with this name, of the tiny tier if none is given. Raises RecipeError with all names."""
    full = name if "/" in name else f"tiny/{name}"
    if full not in RECIPES:
        raise RecipeError(f"no recipe {name!r}; there are {', '.join(RECIPES)}")
    return RECIPES[full]


def of_tier(tier: str) -> list[Recipe]:
    return [recipe for recipe in RECIPES.values() if recipe.tier == tier]


def train(name: str, work: Workspace, out: Path) -> Card:
    """Run a recipe, after those it starts from that have not run in this workspace yet.

    Phases are kept in `work.run_dir`/TIER. Writes the checkpoint and its card to `out`. Raises RecipeError
    for an unknown name, or if a phase was begun with other settings.
    """
    recipe = find(name)
    starts = [_starting_point(start, work) for start in recipe.starts]
    unmeasured = recipe.train(replace(work, run_dir=work.run_dir / recipe.tier), out, *starts)
    return write_card(out, recipe.model, recipe.name, work.seed, work.limit, unmeasured)


def model_folder(name: str, work: Workspace) -> Path:
    """Default folder of a recipe's checkpoint."""
    return work.run_dir / find(name).name / "model"


def _starting_point(name: str, work: Workspace) -> Path:
    """The checkpoint of recipe `name`; if `work.init` is a CNN, it replaces the dense one."""
    if (
        name.endswith("/cifar10-dense")
        and work.init
        and load_config(work.init).model_type == "fewshard_image"
    ):
        return work.init
    directory = model_folder(name, work)
    if load_card(directory) is None:
        train(name, work, directory)
    return directory
