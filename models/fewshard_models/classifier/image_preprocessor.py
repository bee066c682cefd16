"""Converts images to the input of a network, and knows beforehand what that costs.

This file does not import torch: a server decodes in a process that runs no network.
"""

import base64
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import ceil
from pathlib import Path
from typing import Any, ClassVar, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from fewshard_core.values import EncodedImage, Input, Item, PixelArray
from fewshard_models.classifier.base import PIXELS_PER_UNIT, Value
from fewshard_models.classifier.image_files import ImageError, image_size, read_image
from fewshard_models.classifier.image_processor import Features
from fewshard_models.errors import UnusableInput

MAX_RESIZED_PIXELS = 2048 * 2048
"""The most pixels of an image after resizing, unless the model makes larger ones of ordinary images."""
_PROBE_EDGE = 64


class Preprocess(Protocol):
    """Converts one image to the features of a network. It can be pickled.

    mode: the mode of Pillow that it takes: "L", "RGB" or "RGBA".
    """

    @property
    def mode(self) -> str: ...

    def __call__(self, image: Image.Image) -> Features:
        """Return the network's arguments by name. It may raise any error for an image that it cannot take."""
        ...

    def resized_size(self, width: int, height: int) -> tuple[int, int]:
        """Return width and height after resizing, before any crop. They are upper bounds."""
        ...


@runtime_checkable
class Unnormalised(Protocol):
    """A `Preprocess` whose network can normalise a whole batch at once, from a quarter of the bytes."""

    def unnormalised(self, pixels: NDArray[np.uint8]) -> Features:
        """Return pixels that were resized, as one feature, for uint8 [height, width, 3] RGB."""
        ...


@dataclass(frozen=True, slots=True)
class FeatureShape:
    """The shape of the pixels that a network takes.

    smallest: the smallest length of each dimension.
    is_free: by dimension, whether longer ones are possible, as they depend on the image.
    """

    smallest: tuple[int, ...]
    is_free: tuple[bool, ...]

    @classmethod
    def of(cls, shapes: Sequence[tuple[int, ...]]) -> "FeatureShape":
        """Return the shape that includes these, which have one number of dimensions."""
        smallest = tuple(min(lengths) for lengths in zip(*shapes, strict=True))
        return cls(smallest, tuple(len(set(lengths)) > 1 for lengths in zip(*shapes, strict=True)))

    def includes(self, shape: tuple[int, ...]) -> bool:
        return len(shape) == len(self.smallest) and all(
            length >= smallest if free else length == smallest
            for length, smallest, free in zip(shape, self.smallest, self.is_free, strict=True)
        )

    def __str__(self) -> str:
        lengths = [
            f"{smallest} or more" if free else str(smallest)
            for smallest, free in zip(self.smallest, self.is_free, strict=True)
        ]
        return f"[{', '.join(lengths)}]"


class ImagePreprocessor:
    """Makes items whose features are the arguments of a network, most often pixel_values [C, H, W].

    resizes: whether images are resized.
    own_size: width and height of an image that the network takes even if images are not resized.
    takes_only_own_size: whether images must have that size, because they are not resized.
    shape: of the pixels if the network takes nothing else; None otherwise.
    """

    def __init__(self, preprocess: Preprocess, own_edge: int = _PROBE_EDGE) -> None:
        self._preprocess = preprocess
        self._unnormalised = preprocess.unnormalised if isinstance(preprocess, Unnormalised) else None
        self.resizes = preprocess.resized_size(1, 3) != (1, 3)
        self.own_size = (_PROBE_EDGE, _PROBE_EDGE) if self.resizes else (own_edge, own_edge)
        self.takes_only_own_size = False
        own, wide, high = (preprocess(self._drawn(*size)) for size in self._probe_sizes())
        self._names = tuple(own)
        self.shape = None
        if self._names == ("pixel_values",):
            shapes = {each["pixel_values"].shape for each in (own, wide, high)}
            smallest = {(min(shapes)[0], 1, 1)} if not self.resizes and len(shapes) > 1 else set()
            self.shape = FeatureShape.of([*shapes, *smallest])
        width, height = preprocess.resized_size(*self.own_size)
        self._max_resized = max(MAX_RESIZED_PIXELS, 4 * width * height)

    def require_own_size(self) -> None:
        """From now on, refuse images of another size: the network takes no other."""
        self.takes_only_own_size = True
        own = self._preprocess(self._drawn(*self.own_size))["pixel_values"].shape
        self.shape = FeatureShape.of([own])

    def estimate(self, inputs: Sequence[Input]) -> int:
        """Return 0: images have no tokens."""
        return 0

    def costs(self, inputs: Sequence[Input]) -> list[int]:
        """Return the cost of each input: its pixels, before or after resizing, over `PIXELS_PER_UNIT`.

        It reads headers only, and never raises: what cannot be used costs 1.
        """
        return [1 + self._num_pixels(each) // PIXELS_PER_UNIT for each in inputs]

    def to_input(self, value: Value) -> Input:
        """Accept a path, the bytes of a file, or uint8 [height, width, 3]. Raises TypeError, and OSError for
        a path."""
        match value:
            case str() | Path():
                return EncodedImage(Path(value).read_bytes())
            case bytes():
                return EncodedImage(value)
            case np.ndarray() if value.dtype == np.uint8 and value.ndim == 3 and value.shape[2] == 3:
                return PixelArray(value)
            case Input():
                return value
        given = (
            f"{value.dtype} {list(value.shape)}" if isinstance(value, np.ndarray) else type(value).__name__
        )
        raise TypeError(
            "this model classifies images; give a path, the bytes of an image file, or a uint8 array "
            f"[height, width, 3] with values from 0 to 255, not {given}"
        )

    def from_card(self, stored: str) -> Input:
        """Decode base64, the form in which a card stores image files."""
        return EncodedImage(base64.b64decode(stored))

    def probe_inputs(self) -> list[Input]:
        """Return an image of the network's own size, and a wide one if it takes other sizes."""
        sizes = self._probe_sizes()[: 1 if self.takes_only_own_size else 2]
        return [PixelArray(np.asarray(self._drawn(*size, mode="RGB"))) for size in sizes]

    def usual_inputs(self, number: int) -> list[Input]:
        """Return an image of the network's own size, so many times."""
        return [self.probe_inputs()[0]] * number

    def items(self, inputs: Sequence[Input], truncate: bool) -> list[Item]:
        """See `Preprocessor.items`."""
        return [Item(self._features(index, item), 0) for index, item in enumerate(inputs)]

    def _probe_sizes(self) -> list[tuple[int, int]]:
        width, height = self.own_size
        return [(width, height), (2 * width, height), (width, 2 * height)]

    def _drawn(self, width: int, height: int, mode: str = "") -> Image.Image:
        """Return a made-up image of coloured blocks; noise of single pixels would become grey."""
        generator = np.random.default_rng([width, height])
        blocks = generator.integers(0, 256, (ceil(height / 8), ceil(width / 8), 3), dtype=np.uint8)
        pixels = blocks.repeat(8, axis=0).repeat(8, axis=1)[:height, :width]
        return Image.fromarray(pixels).convert(mode or self._preprocess.mode)

    def _num_pixels(self, item: Input) -> int:
        """Return the pixels that preparing an input takes, as far as its header is true; 0 if unusable."""
        try:
            width, height = _size(item)
        except ImageError:
            return 0
        if width * height > getattr(item, "max_pixels", width * height) or not width * height:
            return 0
        if isinstance(item, PixelArray) and item.pixels.dtype != np.uint8:
            return width * height
        resized_width, resized_height = self._preprocess.resized_size(width, height)
        return max(width * height, min(resized_width * resized_height, self._max_resized))

    def _features(self, index: int, item: Input) -> Features:
        read = self._READERS.get(type(item))
        if read is None:
            raise UnusableInput(index, "this model classifies images; send an image")
        try:
            return read(self, item)
        except ImageError as error:
            raise UnusableInput(index, str(error)) from error

    def _of_file(self, item: EncodedImage) -> Features:
        return self._of_image(read_image(item.data, item.max_pixels, self._preprocess.mode))

    def _of_pixels(self, item: PixelArray) -> Features:
        if item.pixels.dtype == np.uint8:
            if 0 in item.pixels.shape:
                raise ImageError(f"an image of shape {list(item.pixels.shape)} has no pixels")
            if self._unnormalised is None:
                return self._of_image(Image.fromarray(item.pixels).convert(self._preprocess.mode))
            self._check_size(item.pixels.shape[1], item.pixels.shape[0])
            return self._unnormalised(item.pixels)
        return self._ready_made(item.pixels)

    def _of_image(self, image: Image.Image) -> Features:
        self._check_size(*image.size)
        try:
            if self._unnormalised is not None:
                return self._unnormalised(np.asarray(image))
            return self._preprocess(image)
        # a processor raises many kinds of errors, for example for images that become 0 pixels wide
        except Exception as error:
            raise ImageError(
                f"the model's image processor cannot take an image of {image.width} x {image.height}: {error}"
            ) from error

    def _check_size(self, width: int, height: int) -> None:
        """Raise ImageError for an image that becomes too large, or that the network does not take."""
        resized_width, resized_height = self._preprocess.resized_size(width, height)
        if resized_width * resized_height > self._max_resized:
            raise ImageError(
                f"the image is {width} x {height} and would be {resized_width} x {resized_height} for this "
                f"model, over {self._max_resized} pixels; send a part of it, or a smaller one"
            )
        if self.takes_only_own_size and (width, height) != self.own_size:
            raise ImageError(
                f"the image is {width} x {height}; this model takes {self.own_size[0]} x {self.own_size[1]} "
                "only, and its preprocessor_config.json says not to resize: resize it before you send it"
            )

    def _ready_made(self, pixels: NDArray[Any]) -> Features:
        """Return normalised pixels as features. They pass by the processor, which would scale them again."""
        if self.shape is None:
            raise ImageError(
                f"this model takes {', '.join(self._names)}, which pixel_values alone do not give; send image"
            )
        if not self.shape.includes(pixels.shape) or pixels[0].size > self._max_resized:
            raise ImageError(f"pixel_values of shape {list(pixels.shape)}, this model takes {self.shape}")
        return {"pixel_values": pixels.astype(np.float32)}

    _READERS: ClassVar[dict[type[Input], Callable[[Any, Any], Features]]] = {
        EncodedImage: _of_file,
        PixelArray: _of_pixels,
    }


def _size(item: Input) -> tuple[int, int]:
    """Return width and height of an input without decoding it; (0, 0) if it is no image."""
    if isinstance(item, EncodedImage):
        return image_size(item.data)
    if isinstance(item, PixelArray) and item.pixels.ndim == 3:
        height, width = item.pixels.shape[:2] if item.pixels.dtype == np.uint8 else item.pixels.shape[1:]
        return width, height
    return 0, 0
