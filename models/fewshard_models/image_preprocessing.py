"""Image preprocessing for our CNN: resize, scale, normalise; stored in `preprocessor_config.json`.

This file imports no torch: a server prepares images in a process that runs no network.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from fewshard_models.errors import CheckpointError

PREPROCESSOR_FILE = "preprocessor_config.json"
PIXELS = "pixels"
"""The feature of images that their network normalises itself: uint8 [height, width, 3]."""


@dataclass(frozen=True, slots=True)
class ImagePreprocessing:
    """Bilinear resize to `height` x `width`, scale to 0..1, then (x - `mean`) / `std` for each channel."""

    height: int
    width: int
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __call__(self, image: NDArray[np.uint8]) -> NDArray[np.float32]:
        """uint8 [H, W, 3] RGB to fp32 [3, height, width]."""
        mean, std = np.array(self.mean, dtype=np.float32), np.array(self.std, dtype=np.float32)
        pixels = (self.resized(image).astype(np.float32) / 255 - mean) / std
        return np.ascontiguousarray(pixels.transpose(2, 0, 1))

    def resized(self, image: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """uint8 [H, W, 3] to uint8 [height, width, 3]."""
        if image.shape[:2] == (self.height, self.width):
            return image
        resized = Image.fromarray(image).resize((self.width, self.height), Image.Resampling.BILINEAR)
        return np.asarray(resized)

    def save(self, directory: Path) -> None:
        fields = {
            "image_processor_type": "ViTImageProcessor",
            "do_resize": True,
            "size": {"height": self.height, "width": self.width},
            "resample": int(Image.Resampling.BILINEAR),
            "do_rescale": True,
            "rescale_factor": 1 / 255,
            "do_normalize": True,
            "image_mean": list(self.mean),
            "image_std": list(self.std),
        }
        (directory / PREPROCESSOR_FILE).write_text(json.dumps(fields, indent=1) + "\n", encoding="utf-8")


@dataclass(frozen=True, slots=True)
class OwnPreprocess:
    """Our own preprocessing as a `Preprocess`; every image becomes the same size."""

    preprocessing: ImagePreprocessing
    mode: str = "RGB"

    def __call__(self, image: Image.Image) -> Mapping[str, NDArray[np.float32]]:
        """Return `pixel_values`, fp32 [3, height, width], of an image of `mode`."""
        return {"pixel_values": self.preprocessing(np.asarray(image))}

    def resized_size(self, width: int, height: int) -> tuple[int, int]:
        """Return width and height after resizing, whatever they were."""
        return self.preprocessing.width, self.preprocessing.height

    def unnormalised(self, pixels: NDArray[np.uint8]) -> Mapping[str, NDArray[np.uint8]]:
        """Return `PIXELS`, uint8 [height, width, 3], of RGB pixels; whoever runs the network normalises."""
        return {PIXELS: self.preprocessing.resized(pixels)}


def load_preprocessing(directory: Path) -> ImagePreprocessing:
    """The preprocessing that `save` wrote. Raises CheckpointError if the file or a field is missing."""
    file = directory / PREPROCESSOR_FILE
    try:
        fields = json.loads(file.read_text(encoding="utf-8"))
        size = fields["size"]
        return ImagePreprocessing(
            size["height"], size["width"], tuple(fields["image_mean"]), tuple(fields["image_std"])
        )
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{file} cannot be used: {error!r}") from error
