"""A checkpoint's own image processor: its input is told, not guessed, and its cost is known beforehand.

This file imports transformers inside functions only: a server prepares images in a process without networks.
"""

import inspect
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from math import ceil
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from fewshard_models.classifier.plain_processor import PlainProcessor, plain_processor
from fewshard_models.errors import CheckpointError

Features = Mapping[str, NDArray[Any]]
"""The arguments of a network for one image, by name, without the dimension of the batch."""

MODES = {1: "L", 3: "RGB", 4: "RGBA"}
"""The mode of Pillow by the number of a network's channels."""

MAX_MODEL_PIXELS = 8192 * 8192
"""A processor that makes more pixels of an ordinary image is refused; its file must be damaged."""
_NEEDLESS = frozenset({"pixel_mask"})
"""Marks padding, which an image that is prepared alone does not have."""


@dataclass(frozen=True, slots=True)
class ImageProcessor:
    """An image processor of transformers, for one image at a time.

    processor: the object.
    mode: the mode of Pillow that the network was made for.
    names: the outputs that the network takes.
    """

    processor: Any
    mode: str
    names: frozenset[str]

    def __call__(self, image: Image.Image) -> Features:
        """Prepare an image of `mode`. The processor may raise any error."""
        # Of an array, a processor guesses which axis holds the channels, wrongly for images 1, 3 or 4 high.
        given = self.processor(images=image, return_tensors="np")
        return {name: _plain(array[0]) for name, array in given.items() if name in self.names}

    def resized_size(self, width: int, height: int) -> tuple[int, int]:
        """Return width and height after resizing, before any crop. They are upper bounds."""
        return resized_size(self.processor, width, height)


def _plain(array: NDArray[Any]) -> NDArray[Any]:
    return array.astype(np.float32) if np.issubdtype(array.dtype, np.floating) else array.astype(np.int64)


def load_processor(
    directory: Path, config: Any, forward: Callable[..., Any]
) -> ImageProcessor | PlainProcessor:
    """Load the image processor of a checkpoint for a network, in its plain form if it has one.

    Raises CheckpointError.

    config: the configuration of the network.
    forward: the method that takes the features.
    """
    channels = num_channels(config)
    if channels not in MODES:
        raise CheckpointError(
            f"{directory}: the network takes images of {channels} channels; served are 1, 3 and 4"
        )
    processor = _loaded(directory)
    names = frozenset(inspect.signature(forward).parameters)
    made = frozenset(processor.model_input_names) | _made(directory, processor, MODES[channels])
    if surplus := made - names - _NEEDLESS:
        raise CheckpointError(
            f"{directory}: {type(processor).__name__} makes {', '.join(sorted(surplus))}, which "
            f"{config.model_type} does not take; is preprocessor_config.json another model's?"
        )
    plain = plain_processor(processor, MODES[channels])
    return plain or ImageProcessor(processor, MODES[channels], names & made)


def num_channels(config: Any) -> int:
    """Return the number of channels that a network's configuration states; 3 if it states none."""
    for part in (config, getattr(config, "vision_config", None)):
        stated = getattr(part, "num_channels", None)
        if isinstance(stated, int):
            return stated
    return 3


def _loaded(directory: Path) -> Any:
    from transformers import AutoImageProcessor

    try:
        # Not torchvision even where it is installed: it resizes differently, and answers would depend on it.
        return AutoImageProcessor.from_pretrained(
            directory, backend="pil", trust_remote_code=False, local_files_only=True
        )
    # transformers raises many kinds of errors; each means that these files are at fault
    except Exception as error:
        if "dependencies: torchvision" in str(error):
            raise CheckpointError(
                f"{directory}: the image processor of preprocessor_config.json needs torchvision; install it"
            ) from error
        raise CheckpointError(f"{directory} has no usable preprocessor_config.json: {error}") from error


def _made(directory: Path, processor: Any, mode: str) -> frozenset[str]:
    """Return the names of what the processor makes of an image."""
    try:
        largest = max(width * height for width, height in _sizes(processor))
        if largest > MAX_MODEL_PIXELS:
            raise ValueError(f"it would have {largest} pixels, more than {MAX_MODEL_PIXELS}")
        return frozenset(processor(images=Image.new(mode, (64, 64)), return_tensors="np"))
    except Exception as error:
        raise CheckpointError(
            f"{directory}: {type(processor).__name__} of preprocessor_config.json cannot prepare an image of "
            f"{len(Image.new(mode, (1, 1)).getbands())} channels: {error}"
        ) from error


def _sizes(processor: Any) -> Iterator[tuple[int, int]]:
    """Yield the sizes that a processor gives to an ordinary image."""
    yield resized_size(processor, 64, 64)
    for size in (getattr(processor, "crop_size", None), getattr(processor, "pad_size", None)):
        lengths = [int(length) for length in dict(size or {}).values() if length]
        yield max(lengths, default=0), max(lengths, default=0)


def resized_size(processor: Any, width: int, height: int) -> tuple[int, int]:
    """Return upper bounds of width and height after a processor of transformers has resized an image."""
    if not getattr(processor, "do_resize", False):
        return width, height
    if patches := getattr(processor, "max_num_patches", None):
        return patches * processor.patch_size, processor.patch_size
    size = {key: int(value) for key, value in dict(processor.size or {}).items() if value}
    short = _short_edge(processor, size)
    if short is None:
        longest = max(size.values())
        return size.get("width", longest), size.get("height", longest)
    divisor = getattr(processor, "size_divisor", None) or 1
    scale = short / min(width, height)
    return _rounded_up(width * scale, divisor), _rounded_up(height * scale, divisor)


def _rounded_up(length: float, divisor: int) -> int:
    return ceil(length / divisor) * divisor


def _short_edge(processor: Any, size: dict[str, int]) -> float | None:
    """Return the short edge after resizing if images keep their ratio; None if all become one size."""
    name, short = type(processor).__name__, size.get("shortest_edge")
    is_square = size.get("height") == size.get("width")
    if name.startswith("ConvNext"):
        return None if short is None or short >= 384 else short / processor.crop_pct
    if name.startswith("PoolFormer") and processor.crop_pct:
        short = short or (size["height"] if is_square else None)
        return short and short / processor.crop_pct
    if name.startswith("Donut"):
        return min(size["height"], size["width"])
    if name.startswith("Levit") and short:
        return short * 256 / 224
    return None if "longest_edge" in size else short
