"""Training of the residual CNN on CIFAR-10: whitening stem, augmentation, and losses."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from fewshard_models.data.cifar10 import MEAN, STD
from fewshard_models.image import FewshardImageForImageClassification
from fewshard_models.losses import classification_loss

LABEL_SMOOTHING = 0.2


def normalise(images: Tensor) -> Tensor:
    """uint8 [N, H, W, 3] to fp32 [N, 3, H, W] by CIFAR-10's mean and deviation; channels last in memory."""
    pixels = images.permute(0, 3, 1, 2).float() / 255
    pixels = (pixels - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1)
    return pixels.contiguous(memory_format=torch.channels_last)


@dataclass(frozen=True, slots=True)
class ImageBatches:
    """Shuffled, flipped and shifted batches (fp32 [B, 3, 32, 32], int64 [B]).

    Each image is mirrored in every other epoch, so both sides occur equally often (alternating flip, Jordan
    2024, arXiv:2404.00498).

    max_shift: maximum shift in pixels, with reflection at the border.
    cutout: side in pixels of a square that is set to the mean (DeVries & Taylor 2017, arXiv:1708.04552).
    """

    images: NDArray[np.uint8]
    labels: NDArray[np.int64]
    batch_size: int
    max_shift: int
    seed: int
    cutout: int = 0

    def steps_per_epoch(self) -> int:
        return len(self.images) // self.batch_size

    def epoch(self, number: int) -> Iterator[tuple[Tensor, Tensor]]:
        order = np.random.default_rng((self.seed, number)).permutation(len(self.images))
        mirrored_first = np.random.default_rng(self.seed).random(len(self.images)) < 0.5
        for step in range(self.steps_per_epoch()):
            rows = order[step * self.batch_size : (step + 1) * self.batch_size]
            rng = np.random.default_rng((self.seed, number, step))
            images = normalise(torch.from_numpy(self.images[rows]))
            mirrored = torch.from_numpy(mirrored_first[rows] ^ (number % 2 == 1))
            images = torch.where(mirrored[:, None, None, None], images.flip(3), images)
            images = hide(shift(images, self.max_shift, rng), self.cutout, rng)
            yield images, torch.from_numpy(self.labels[rows])


def shift(images: Tensor, max_shift: int, rng: np.random.Generator) -> Tensor:
    """Shift each image by up to `max_shift` pixels in both directions, with a reflected border."""
    size = images.shape[-1]
    padded = F.pad(images, (max_shift,) * 4, mode="reflect")
    offsets = torch.from_numpy(rng.integers(0, 2 * max_shift + 1, (len(images), 2)))
    shifted = torch.empty_like(images)
    for dy, dx in offsets.unique(dim=0).tolist():
        chosen = (offsets[:, 0] == dy) & (offsets[:, 1] == dx)
        shifted[chosen] = padded[chosen, :, dy : dy + size, dx : dx + size]
    return shifted


def hide(images: Tensor, size: int, rng: np.random.Generator) -> Tensor:
    """Zero a square of `size` pixels at a random centre in each image; does nothing if `size` is 0."""
    if not size:
        return images
    extent = images.shape[-1]
    centres = torch.from_numpy(rng.integers(0, extent, (len(images), 2, 1)))
    inside = (torch.arange(extent) - centres + size // 2).div(size, rounding_mode="floor") == 0
    hidden = inside[:, 0, :, None] & inside[:, 1, None, :]
    return images.masked_fill_(hidden[:, None], 0.0)


def smoothed_loss(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    """Cross-entropy with label smoothing 0.2."""
    assert isinstance(model, FewshardImageForImageClassification)
    images, labels = (tensor.to(model.device, non_blocking=True) for tensor in batch)
    return classification_loss(model(images).logits, labels, model.config, LABEL_SMOOTHING)


def image_distillation_loss(
    teacher: FewshardImageForImageClassification, temperature: float = 2.0, label_weight: float = 0.3
) -> Callable[[nn.Module, tuple[Tensor, Tensor]], Tensor]:
    """A loss function of (student, batch): KL divergence to the teacher's output for the same augmented
    images at `temperature` (Hinton et al. 2015, arXiv:1503.02531), plus cross-entropy to the labels."""
    teacher = teacher.eval()

    def loss_of(student: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        assert isinstance(student, FewshardImageForImageClassification)
        images, labels = (tensor.to(student.device, non_blocking=True) for tensor in batch)
        with torch.no_grad():
            wanted = teacher(images).logits
        logits = student(images).logits
        kl = F.kl_div(
            F.log_softmax(logits / temperature, dim=-1),
            F.log_softmax(wanted / temperature, dim=-1),
            log_target=True,
            reduction="batchmean",
        )
        return kl * temperature**2 + label_weight * F.cross_entropy(logits, labels)

    return loss_of


def prepare(model: FewshardImageForImageClassification, images: NDArray[np.uint8], seed: int) -> None:
    """Set the stem to whiten 2x2 patches and freeze it; initialise each convolution near the identity."""
    sample = np.random.default_rng(seed).permutation(len(images))[:5000]
    with torch.no_grad():
        whiten(model.stem, normalise(torch.from_numpy(images[sample])))
        for module in model.stages.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.dirac_(module.weight[: module.in_channels])
    model.stem.requires_grad_(False)


def whiten(stem: nn.Conv2d, images: Tensor, epsilon: float = 5e-4) -> None:
    """Set `stem` to the eigenvectors of the patches' covariance and their negatives, scaled to unit variance
    (Page 2019; Jordan 2024)."""
    size = stem.kernel_size[0]
    patches = images.unfold(2, size, 1).unfold(3, size, 1).permute(0, 2, 3, 1, 4, 5)
    patches = patches.reshape(-1, stem.in_channels * size**2).double()
    values, vectors = torch.linalg.eigh(patches.T @ patches / len(patches))
    filters = (vectors / (values + epsilon).sqrt()).T.flip(0).float()
    filters = filters.view(-1, stem.in_channels, size, size)
    stem.weight.copy_(torch.cat([filters, -filters])[: stem.out_channels])
    assert stem.bias is not None
    stem.bias.zero_()
