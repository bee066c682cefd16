"""Corrupted images and texts, in three severities. Called through `tasks`.

Images: noise, blur, contrast and JPEG, after Hendrycks and Dietterich (2019, arXiv:1903.12261). They are
    computed here with our own strengths, and are not the CIFAR-10-C benchmark. Texts: typos, letter case,
    dropped words.
"""

import io
import zlib
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image

Images = NDArray[np.uint8]

SEVERITIES = (1, 2, 3)
# In levels of 255. Weak on purpose: with a whitening stem, a network only guesses from 8 on.
NOISE_DEVIATIONS = (2.0, 4.0, 8.0)
BLUR_DEVIATIONS = (0.6, 0.9, 1.4)
CONTRASTS = (0.6, 0.4, 0.2)
JPEG_QUALITIES = (60, 30, 12)


def corrupt_images(images: Images, kind: str, severity: int, seed: int = 0) -> Images:
    """Return corrupted images: uint8 [N, H, W, 3] to the same shape.

    `kind`: a key of IMAGE_KINDS. `severity`: 1 to 3. Raises ValueError for another. Equal arguments give
        equal results, independent of earlier calls.
    """
    if kind not in IMAGE_KINDS or severity not in SEVERITIES:
        raise ValueError(
            f"no corruption {kind!r} of severity {severity}; there are {', '.join(IMAGE_KINDS)}, 1 to 3"
        )
    rng = np.random.default_rng((seed, zlib.crc32(kind.encode()), severity))
    return IMAGE_KINDS[kind](images, severity - 1, rng)


def _noise(images: Images, level: int, rng: np.random.Generator) -> Images:
    """Add Gaussian noise of equal strength to every value."""
    noise = rng.normal(0, NOISE_DEVIATIONS[level], images.shape)
    return _rounded(images + noise)


def _blur(images: Images, level: int, _: np.random.Generator) -> Images:
    """Blur with a Gaussian. The border is repeated."""
    weights = _gaussian(BLUR_DEVIATIONS[level])
    blurred = images.astype(np.float32)
    for axis in (1, 2):
        blurred = _along(blurred, weights, axis)
    return _rounded(blurred)


def _contrast(images: Images, level: int, _: np.random.Generator) -> Images:
    """Move values towards each image's mean colour."""
    means = images.mean(axis=(1, 2), keepdims=True)
    return _rounded(means + CONTRASTS[level] * (images - means))


def _jpeg(images: Images, level: int, _: np.random.Generator) -> Images:
    """Encode as JPEG and decode again."""
    return np.stack([_through_jpeg(image, JPEG_QUALITIES[level]) for image in images])


IMAGE_KINDS: dict[str, Callable[[Images, int, np.random.Generator], Images]] = {
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
    """Return the weighted sum of neighbours along one axis."""
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


TYPO_SHARES = (0.1, 0.25, 0.5)
DROP_SHARES = (0.1, 0.2, 0.4)


def corrupt_texts(texts: Sequence[str], kind: str, severity: int, seed: int = 0) -> list[str]:
    """Return corrupted texts, as many as given.

    `kind`: a key of TEXT_KINDS. `severity`: 1 to 3. Raises ValueError for another. Equal arguments give equal
        results. Each text has its own random numbers, so its corruption does not depend on the other texts.
    """
    if kind not in TEXT_KINDS or severity not in SEVERITIES:
        raise ValueError(
            f"no corruption {kind!r} of severity {severity}; there are {', '.join(TEXT_KINDS)}, 1 to 3"
        )
    return [TEXT_KINDS[kind](text, severity - 1, _generator(text, kind, severity, seed)) for text in texts]


def _generator(text: str, kind: str, severity: int, seed: int) -> np.random.Generator:
    return np.random.default_rng((seed, zlib.crc32(kind.encode()), severity, zlib.crc32(text.encode())))


def _typos(text: str, level: int, rng: np.random.Generator) -> str:
    """Misspell a share of the words of at least four letters."""
    words = text.split(" ")
    long = [index for index, word in enumerate(words) if len(word) >= 4]
    if not long:
        return text
    count = max(1, round(TYPO_SHARES[level] * len(long)))
    for index in rng.choice(long, count, replace=False):
        words[index] = _misspelt(words[index], rng)
    return " ".join(words)


def _misspelt(word: str, rng: np.random.Generator) -> str:
    """Swap two neighbouring letters, omit one, or double one. The first letter stays."""
    at = int(rng.integers(1, len(word) - 1))
    swapped = word[:at] + word[at + 1] + word[at] + word[at + 2 :]
    left_out = word[:at] + word[at + 1 :]
    doubled = word[:at] + word[at] + word[at:]
    choices = [each for each in (swapped, left_out, doubled) if each != word]
    return choices[int(rng.integers(len(choices)))]


def _case(text: str, level: int, rng: np.random.Generator) -> str:
    """Severity 1: capitalise words; 2: all capitals; 3: each letter in random case."""
    if level == 0:
        return " ".join(word[:1].upper() + word[1:] for word in text.split(" "))
    if level == 1:
        return text.upper()
    capital = rng.random(len(text)) < 0.5
    return "".join(c.upper() if up else c.lower() for c, up in zip(text, capital, strict=True))


def _dropped(text: str, level: int, rng: np.random.Generator) -> str:
    """Drop a share of the words, at least one if there are two or more."""
    words = text.split()
    if len(words) < 2:
        return text
    count = min(len(words) - 1, max(1, round(DROP_SHARES[level] * len(words))))
    gone = set(rng.choice(len(words), count, replace=False).tolist())
    return " ".join(word for index, word in enumerate(words) if index not in gone)


TEXT_KINDS: dict[str, Callable[[str, int, np.random.Generator], str]] = {
    "typos": _typos,
    "case": _case,
    "dropped words": _dropped,
}
