"""Corrupted images, four kinds in three severities; computed here, and not the CIFAR-10-C benchmark.

The kinds follow Hendrycks and Dietterich (2019, arXiv:1903.12261); strengths are ours. Called by `judge`.
"""

import io
import zlib
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from PIL import Image

Images = NDArray[np.uint8]

SEVERITIES = (1, 2, 3)
# Of 255 levels. Weak on purpose: a network behind a whitening stem guesses from 8 on.
NOISE_DEVIATIONS = (2.0, 4.0, 8.0)
BLUR_DEVIATIONS = (0.6, 0.9, 1.4)
CONTRASTS = (0.6, 0.4, 0.2)
JPEG_QUALITIES = (60, 30, 12)


def corrupt_images(images: Images, kind: str, severity: int, seed: int = 0) -> Images:
    """uint8 [N, H, W, 3] to the same shape; the same for the same arguments, whatever was called before.

    `kind`: one of KINDS; `severity`: 1 to 3. Raises ValueError for another.
    """
    if kind not in KINDS or severity not in SEVERITIES:
        raise ValueError(
            f"no corruption {kind!r} of severity {severity}; there are {', '.join(KINDS)}, 1 to 3"
        )
    rng = np.random.default_rng((seed, zlib.crc32(kind.encode()), severity))
    return KINDS[kind](images, severity - 1, rng)


def _noise(images: Images, level: int, rng: np.random.Generator) -> Images:
    """Gaussian noise of equal strength on every value."""
    noise = rng.normal(0, NOISE_DEVIATIONS[level], images.shape)
    return _rounded(images + noise)


def _blur(images: Images, level: int, _: np.random.Generator) -> Images:
    """Gaussian blur, the border repeated."""
    weights = _gaussian(BLUR_DEVIATIONS[level])
    blurred = images.astype(np.float32)
    for axis in (1, 2):
        blurred = _along(blurred, weights, axis)
    return _rounded(blurred)


def _contrast(images: Images, level: int, _: np.random.Generator) -> Images:
    """Pulled towards each image's mean colour."""
    means = images.mean(axis=(1, 2), keepdims=True)
    return _rounded(means + CONTRASTS[level] * (images - means))


def _jpeg(images: Images, level: int, _: np.random.Generator) -> Images:
    """Through a JPEG file and back."""
    return np.stack([_through_jpeg(image, JPEG_QUALITIES[level]) for image in images])


KINDS: dict[str, Callable[[Images, int, np.random.Generator], Images]] = {
    "noise": _noise,
    "blur": _blur,
    "contrast": _contrast,
    "jpeg": _jpeg,
}


def _rounded(values: NDArray[np.floating]) -> Images:
    rounded: Images = values.round().clip(0, 255).astype(np.uint8)
    return rounded


def _gaussian(deviation: float) -> NDArray[np.float32]:
    radius = int(np.ceil(3 * deviation))
    weights = np.exp(-0.5 * (np.arange(-radius, radius + 1) / deviation) ** 2)
    normalised: NDArray[np.float32] = (weights / weights.sum()).astype(np.float32)
    return normalised


def _along(values: NDArray[np.float32], weights: NDArray[np.float32], axis: int) -> NDArray[np.float32]:
    """The weighted sum of neighbours along one axis."""
    radius, size = len(weights) // 2, values.shape[axis]
    widths = [(radius, radius) if each == axis else (0, 0) for each in range(values.ndim)]
    padded = np.pad(values, widths, mode="edge")
    parts = [
        weight * np.take(padded, range(start, start + size), axis) for start, weight in enumerate(weights)
    ]
    total: NDArray[np.float32] = np.sum(parts, axis=0, dtype=np.float32)
    return total


def _through_jpeg(image: NDArray[np.uint8], quality: int) -> NDArray[np.uint8]:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, format="JPEG", quality=quality)
    return np.asarray(Image.open(buffer).convert("RGB"))
