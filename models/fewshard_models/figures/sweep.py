"""Short runs for figure 2: five CNN widths dense, and the widest pruned to five sizes; resumable.

Called by `fewshard figures sweep`.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from fewshard_models.checkpoint import load_checkpoint, save_checkpoint
from fewshard_models.counting import count_macs
from fewshard_models.data.cifar10 import CLASSES, MEAN, STD, load_cifar10
from fewshard_models.evaluate import evaluate
from fewshard_models.figures.tradeoff import Point
from fewshard_models.image import FewshardImageConfig
from fewshard_models.image import FewshardImageForImageClassification as Cnn
from fewshard_models.image.preprocessing import ImagePreprocessing
from fewshard_models.recipes.fit import FitSettings, fit
from fewshard_models.recipes.images import ImageBatches, prepare, smoothed_loss
from fewshard_models.recipes.width import narrowed, widened
from fewshard_models.recipes.workspace import Workspace

WIDTHS = (0.4, 0.6, 0.8, 1.0, 1.4)
SHARES = (0.08, 0.18, 0.33, 0.5, 0.75)
EPOCHS = 4
BATCH_SIZE = 512
Prune = Callable[[Cnn, float], Cnn]


@dataclass(frozen=True, slots=True)
class Sweep:
    """`widths`: of the dense CNNs, the last the widest, from which `shares` of its MACs are kept; `prune`: a
    function of a trained CNN and such a share."""

    work: Workspace
    widths: Sequence[float] = WIDTHS
    shares: Sequence[float] = SHARES
    prune: Prune = narrowed

    @property
    def epochs(self) -> int:
        return self.work.num_epochs(EPOCHS)


def run(sweep: Sweep, say: Callable[[str], None] = lambda _text: None) -> list[Point]:
    """Train what is not trained yet; a point for each network, dense first."""
    points = []
    for width in sweep.widths:
        say(f"dense, {width} times as wide, {sweep.epochs} epochs")
        points.append(_point(sweep, f"dense-{width}", "dense", sweep.epochs, _fresh(sweep, width)))
    widest = sweep.work.phase(f"sweep-dense-{sweep.widths[-1]}") / "model"
    for share in sweep.shares:
        say(f"the widest pruned to {share} of its MACs, {sweep.epochs} epochs more")
        start = _pruned(sweep, widest, share)
        points.append(_point(sweep, f"pruned-{share}", "pruned", 2 * sweep.epochs, start))
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


def _point(sweep: Sweep, name: str, kind: str, epochs: int, start: Callable[[], Cnn]) -> Point:
    folder = sweep.work.phase(f"sweep-{name}")
    out = folder / "model"
    if not (out / "preprocessor_config.json").is_file():
        _train(sweep, start(), folder, peak=0.4 if kind == "dense" else 0.1)
    found, config = evaluate(out, sweep.work.limit), load_checkpoint(out).model.config
    note = f"short run, batches of {BATCH_SIZE}, seed {sweep.work.seed}"
    figures = (count_macs(config), round(found.accuracy, 5), len(found.labels))
    return Point(name, kind, *figures, epochs, note)


def _train(sweep: Sweep, model: Cnn, folder: Path, peak: float) -> None:
    """As the tiny tier's recipe does, in fewer epochs; `peak`: the largest learning rate."""
    images, labels = load_cifar10("train")
    images, labels = images[: sweep.work.limit], labels[: sweep.work.limit]
    settings = FitSettings(
        epochs=sweep.epochs,
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
