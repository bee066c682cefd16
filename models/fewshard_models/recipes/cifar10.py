"""CIFAR-10 recipes, the same for every tier: a dense CNN, its sparse variants, a narrow dense baseline."""

import copy
from collections.abc import Callable
from dataclasses import asdict, replace
from itertools import islice
from pathlib import Path

import torch
from torch import Tensor, nn

from fewshard_models.checkpoint import save_checkpoint
from fewshard_models.classifier.load import load_checkpoint
from fewshard_models.counting import count_macs
from fewshard_models.data.cifar10 import CLASSES, MEAN, STD, load_cifar10
from fewshard_models.evaluation.accuracy import write_card
from fewshard_models.files import whole_folder
from fewshard_models.image import FewshardImageConfig
from fewshard_models.image_preprocessing import ImagePreprocessing
from fewshard_models.recipes.images import ImageBatches, image_distillation_loss, prepare, smoothed_loss
from fewshard_models.recipes.progress import image_accuracy
from fewshard_models.recipes.tiers import ImageTier
from fewshard_models.recipes.training_loop import FitSettings, UpdateHook, fit
from fewshard_models.recipes.workspace import Workspace, digest
from fewshard_models.sparsify.channels import Cnn, cut, macs_of, require_cnn, widths_of, with_widths
from fewshard_models.sparsify.prune import narrow_widths, prune_channels
from fewshard_models.sparsify.report import compare
from fewshard_models.sparsify.rigl import Rigl, RiglSettings

TAYLOR_BATCHES = 8
MASKED_SUFFIX = "-masked"
# A filter regrown entirely from zero feeds a batch norm that multiplies its gradient by hundreds. Without
# clipping, one grew to 3e7 and never moved again (docs/log.md).
MAX_GRAD_NORM = 2.0


def train_dense(tier: ImageTier, work: Workspace, out: Path) -> None:
    """Train `cifar10-dense`: SGD, triangular cycle, label smoothing, flips and shifts, averaged weights."""
    model = _start(dense_config(tier), work)
    _save(_fit(model, work, tier, "cifar10-dense"), out)


def train_narrow(tier: ImageTier, work: Workspace, out: Path, dense: Path, dynamic: Path) -> None:
    """Train `cifar10-narrow`: a dense network with the MACs of `dynamic`, trained in the same way."""
    config = dense_config(tier)
    target = count_macs(load_checkpoint(dynamic).model.config)
    round_to = min(8, tier.round_to)
    widths = narrow_widths(widths_of(config), lambda widths: macs_of(config, widths), target, round_to)
    model = _start(with_widths(config, widths, None), work)
    _save(_fit(model, work, tier, "cifar10-narrow", dense), out)


def train_dynamic(tier: ImageTier, work: Workspace, out: Path, dense: Path) -> None:
    """Train `cifar10-dst`: RigL from scratch while channels die, distilled from `dense` as all smaller CNNs.

    `out` receives the network after its dead channels are cut out. The masked network before the cut, which
    gives the same logits, is saved beside it with the suffix `-masked`.
    """
    model = _start(dense_config(tier), work)
    whole = copy.deepcopy(model)
    total_steps = work.num_epochs(tier.epochs) * _batches(work, tier).steps_per_epoch()
    settings = RiglSettings(
        density=tier.density,
        update_every=max(1, total_steps // 48),
        macs_share=tier.dynamic_share,
        round_to=tier.round_to,
        seed=work.seed,
    )
    hook = Rigl(model, settings, total_steps)
    trained = _fit(model, work, tier, "cifar10-dst", dense, hook, max_grad_norm=MAX_GRAD_NORM)
    hook.finish(trained)
    trained.config.sparsity_kind = "dynamic"
    masked = out.with_name(out.name + MASKED_SUFFIX)
    asked = {"density": tier.density, "macs_share": tier.dynamic_share}
    for folder, model in ((masked, trained), (out, cut(trained))):
        _save(model, folder)
        compare(whole, model, "rigl, channels die", asked).save(folder)
    write_card(masked, f"cifar10-dst{MASKED_SUFFIX}", f"{tier.name}/cifar10-dst", work.seed, work.limit)


def train_static(tier: ImageTier, work: Workspace, out: Path, dense: Path) -> None:
    """Train `cifar10-static`: prune the channels of `dense` that matter least to its loss, then fine-tune.

    The dense network is the teacher of the fine-tuning.
    """
    teacher = require_cnn(load_checkpoint(dense).model)
    pruned = copy.deepcopy(teacher)
    for images, labels in islice(_batches(work, tier).epoch(0), TAYLOR_BATCHES):
        pruned(images, labels=labels).loss.backward()
    student = prune_channels(pruned, tier.static_share, round_to=tier.round_to, taylor=True)
    student.stem.requires_grad_(False)
    settings = _settings(work, tier, tier.static_epochs, tier.static_learning_rate)
    trained = fit(
        _placed(student),
        _batches(work, tier),
        _taught_by(dense),
        settings,
        work.phase("cifar10-static", {"tier": asdict(tier), "dense": digest(dense)}),
        accuracy_of=image_accuracy(),
    )
    _save(require_cnn(trained), out)
    asked = {"macs_share": tier.static_share, "round_to": tier.round_to}
    compare(teacher, require_cnn(trained), "Torch-Pruning, Taylor importance", asked).save(out)


def dense_config(tier: ImageTier) -> FewshardImageConfig:
    return FewshardImageConfig(
        stage_channels=tier.stage_channels,
        block_channels=tier.block_channels,
        id2label=dict(enumerate(CLASSES)),
        label2id={name: index for index, name in enumerate(CLASSES)},
    )


def _start(config: FewshardImageConfig, work: Workspace) -> Cnn:
    """A new network with a whitening stem, on the training device."""
    torch.manual_seed(work.seed)
    model = Cnn(config)
    prepare(model, load_cifar10("train")[0][: work.limit], work.seed)
    return _placed(model)


def _placed(model: Cnn) -> Cnn:
    """Move the model to the GPU, if there is one, with channels last in memory."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model.to(device).to(memory_format=torch.channels_last)
    return model


def _fit(
    model: Cnn,
    work: Workspace,
    tier: ImageTier,
    phase: str,
    teacher: Path | None = None,
    hook: UpdateHook | None = None,
    max_grad_norm: float = 0.0,
) -> Cnn:
    """Train from scratch, on the labels or with a checkpoint as the teacher."""
    settings = replace(_settings(work, tier, tier.epochs, tier.learning_rate), max_grad_norm=max_grad_norm)
    asked = {"tier": asdict(tier)} | ({} if teacher is None else {"dense": digest(teacher)})
    return require_cnn(
        fit(
            model,
            _batches(work, tier),
            smoothed_loss if teacher is None else _taught_by(teacher),
            settings,
            work.phase(phase, asked),
            hook,
            image_accuracy(),
        )
    )


def _taught_by(dense: Path) -> Callable[[nn.Module, tuple[Tensor, Tensor]], Tensor]:
    teacher = require_cnn(load_checkpoint(dense).model)
    return image_distillation_loss(_placed(teacher).requires_grad_(False))


def _settings(work: Workspace, tier: ImageTier, epochs: int, learning_rate: float) -> FitSettings:
    return FitSettings(
        epochs=work.num_epochs(epochs),
        learning_rate=learning_rate,
        optimizer="sgd",
        weight_decay=5e-4,
        warmup=0.2,
        final_lr_share=0.02,
        ema_decay=tier.ema_decay,
        seed=work.seed,
    )


def _batches(work: Workspace, tier: ImageTier) -> ImageBatches:
    images, labels = load_cifar10("train")
    images, labels = images[: work.limit], labels[: work.limit]
    size = min(tier.batch_size, len(images))
    return ImageBatches(images, labels, size, tier.max_shift, work.seed, tier.cutout)


def _save(model: Cnn, out: Path) -> None:
    with whole_folder(out) as folder:
        save_checkpoint(model.cpu(), folder)
        ImagePreprocessing(height=32, width=32, mean=MEAN, std=STD).save(folder)
