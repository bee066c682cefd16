"""Short training runs for figure 2: dense CNNs of five widths, and the widest pruned to five sizes.

Every network trains for the same total number of epochs; a pruned one spends half of them before pruning.
Runs are resumable. Called by `fewshard figures sweep`.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from fewshard_models.checkpoint import save_checkpoint
from fewshard_models.classifier.load import load_checkpoint
from fewshard_models.counting import count_macs
from fewshard_models.data.cifar10 import CLASSES, MEAN, STD, load_cifar10
from fewshard_models.errors import RecipeError
from fewshard_models.evaluation.accuracy import evaluate
from fewshard_models.figures.tradeoff import Point
from fewshard_models.image import FewshardImageConfig
from fewshard_models.image import FewshardImageForImageClassification as Cnn
from fewshard_models.image_preprocessing import ImagePreprocessing
from fewshard_models.recipes.images import ImageBatches, prepare, smoothed_loss
from fewshard_models.recipes.training_loop import FitSettings, fit
from fewshard_models.recipes.width import narrowed, widened
from fewshard_models.recipes.workspace import Workspace

WIDTHS = (0.4, 0.6, 0.8, 1.0, 1.4)
SHARES = (0.08, 0.18, 0.33, 0.5, 0.75)
EPOCHS = 8
BATCH_SIZE = 512
Prune = Callable[[Cnn, float], Cnn]


@dataclass(frozen=True, slots=True)
class Sweep:
    """The networks to train.

    work: the workspace.
    widths: widths of the dense CNNs; the last is the widest and the one that is pruned.
    shares: shares of its MACs to keep.
    prune: prunes a CNN, trained for half of the epochs, to a share.
    """

    work: Workspace
    widths: Sequence[float] = WIDTHS
    shares: Sequence[float] = SHARES
    prune: Prune = narrowed

    @property
    def epochs(self) -> int:
        return self.work.num_epochs(EPOCHS)


def run(sweep: Sweep, say: Callable[[str], None] = lambda _text: None) -> list[Point]:
    """Train the missing networks and return a point for each, dense ones first.

    Raises RecipeError for fewer than two epochs: a pruned network needs one before pruning and one after.
    """
    if sweep.epochs < 2:
        raise RecipeError(f"the sweep needs 2 epochs, half of them before pruning, not {sweep.epochs}")
    points = []
    for width in sweep.widths:
        say(f"dense, {width} times as wide, {sweep.epochs} epochs")
        folder = _trained(sweep, f"dense-{width}", sweep.epochs, 0.4, _fresh(sweep, width))
        points.append(_point(sweep, f"dense-{width}", "dense", folder))
    before = sweep.epochs // 2
    say(f"the widest, {before} epochs before it is pruned")
    start = _trained(sweep, "start", before, 0.4, _fresh(sweep, sweep.widths[-1]))
    for share in sweep.shares:
        say(f"the widest pruned to {share} of its MACs, {sweep.epochs - before} epochs more")
        cut = _pruned(sweep, start, share)
        folder = _trained(sweep, f"pruned-{share}", sweep.epochs - before, 0.1, cut)
        points.append(_point(sweep, f"pruned-{share}", "pruned", folder))
    return points


def _fresh(sweep: Sweep, width: float) -> Callable[[], Cnn]:
    def make() -> Cnn:
        names = {"id2label": dict(enumerate(CLASSES)), "label2id": {n: i for i, n in enumerate(CLASSES)}}
        torch.manual_seed(sweep.work.seed)
        model = Cnn(widened(width, FewshardImageConfig(**names)))
        prepare(model, load_cifar10("train")[0][: sweep.work.limit], sweep.work.seed)
        return model

    return make


def _pruned(sweep: Sweep, widest: Path, share: float) -> Callable[[], Cnn]:
    def make() -> Cnn:
        trained = load_checkpoint(widest).model
        assert isinstance(trained, Cnn)
        smaller = sweep.prune(trained, share)
        smaller.stem.weight.requires_grad_(False)
        return smaller

    return make


def _trained(sweep: Sweep, name: str, epochs: int, peak: float, start: Callable[[], Cnn]) -> Path:
    """The checkpoint, trained if it does not exist yet; `peak`: the maximum learning rate."""
    folder = sweep.work.phase(f"sweep-{name}")
    if not (folder / "model" / "preprocessor_config.json").is_file():
        _train(sweep, start(), folder, epochs, peak)
    return folder / "model"


def _point(sweep: Sweep, name: str, kind: str, model: Path) -> Point:
    found, config = evaluate(model, sweep.work.limit), load_checkpoint(model).model.config
    note = f"short run, batches of {BATCH_SIZE}, seed {sweep.work.seed}"
    figures = (count_macs(config), round(found.accuracy, 5), len(found.labels))
    return Point(name, kind, *figures, sweep.epochs, note)


def _train(sweep: Sweep, model: Cnn, folder: Path, epochs: int, peak: float) -> None:
    """Train like the tiny tier's recipe, with fewer epochs."""
    images, labels = load_cifar10("train")
    images, labels = images[: sweep.work.limit], labels[: sweep.work.limit]
    settings = FitSettings(
        epochs=epochs,
        learning_rate=peak,
        optimizer="sgd",
        weight_decay=5e-4,
        warmup=0.2,
        final_lr_share=0.02,
        ema_decay=0.99,
        seed=sweep.work.seed,
    )
    batches = ImageBatches(images, labels, min(BATCH_SIZE, len(images)), max_shift=2, seed=sweep.work.seed)
    trained = fit(model.to(memory_format=torch.channels_last), batches, smoothed_loss, settings, folder)
    assert isinstance(trained, Cnn)
    save_checkpoint(trained, folder / "model")
    ImagePreprocessing(height=32, width=32, mean=MEAN, std=STD).save(folder / "model")
