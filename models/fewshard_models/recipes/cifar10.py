"""The CIFAR-10 recipe of the tiny tier: a 1.7M-parameter residual CNN in twelve epochs."""

from dataclasses import asdict
from pathlib import Path

import torch
from torch import Tensor, nn

from fewshard_models.checkpoint import save_checkpoint
from fewshard_models.data.cifar10 import CLASSES, MEAN, STD, load_cifar10
from fewshard_models.files import whole_folder
from fewshard_models.image import FewshardImageConfig, FewshardImageForImageClassification
from fewshard_models.image.preprocessing import ImagePreprocessing
from fewshard_models.losses import classification_loss
from fewshard_models.recipes.fit import FitSettings, fit
from fewshard_models.recipes.images import ImageBatches, prepare
from fewshard_models.recipes.workspace import Workspace

BATCH_SIZE = 512
LABEL_SMOOTHING = 0.2


def train_dense(work: Workspace, out: Path) -> None:
    """`cifar10-dense`: SGD with one triangular cycle, label smoothing, flips and shifts, averaged weights."""
    images, labels = load_cifar10("train")
    images, labels = images[: work.limit], labels[: work.limit]
    torch.manual_seed(work.seed)
    config = FewshardImageConfig(
        id2label=dict(enumerate(CLASSES)), label2id={name: index for index, name in enumerate(CLASSES)}
    )
    model = FewshardImageForImageClassification(config).to(memory_format=torch.channels_last)
    prepare(model, images, work.seed)
    settings = FitSettings(
        epochs=work.num_epochs(12),
        learning_rate=0.4,
        optimizer="sgd",
        weight_decay=5e-4,
        warmup=0.2,
        final_lr_share=0.02,
        ema_decay=0.99,
        seed=work.seed,
    )
    batches = ImageBatches(images, labels, min(BATCH_SIZE, len(images)), max_shift=2, seed=work.seed)
    # Whatever decides the result is in the phase's settings, so that a run resumed with others is refused.
    asked = {"fit": asdict(settings), "batch_size": BATCH_SIZE, "label_smoothing": LABEL_SMOOTHING}
    trained = fit(model, batches, smoothed_loss, settings, work.phase("cifar10-dense", asked))
    assert isinstance(trained, FewshardImageForImageClassification)
    with whole_folder(out) as folder:
        save_checkpoint(trained, folder)
        ImagePreprocessing(height=32, width=32, mean=MEAN, std=STD).save(folder)


def smoothed_loss(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    """Cross-entropy with label smoothing 0.2."""
    assert isinstance(model, FewshardImageForImageClassification)
    images, labels = batch
    return classification_loss(model(images).logits, labels, model.config, LABEL_SMOOTHING)
