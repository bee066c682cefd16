"""Decodes untrusted image files, and converts them to the input of an image network.

This file does not import torch: a server decodes in a process that runs no network.
"""

import base64
from collections.abc import Callable, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from fewshard_core.errors import FewshardError
from fewshard_core.values import EncodedImage, Input, Item, PixelArray
from fewshard_models.classifier.base import PIXELS_PER_UNIT, Value
from fewshard_models.errors import UnusableInput

FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP")

_EXIF_ORIENTATION = 0x0112
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


class ImageError(FewshardError):
    """The bytes are not a usable image. The message says why."""


def decode_image(data: bytes, max_pixels: int = 25_000_000) -> NDArray[np.uint8]:
    """Return the pixels of an image file: uint8 [height, width, 3] RGB, rotated as its EXIF orientation says.

    Animations give their first frame. Alpha is dropped, and palettes and CMYK are converted, as by Pillow's
    `convert("RGB")`, on whose output checkpoints were trained. 16-bit grey is scaled to 8 bits. Raises
    `ImageError`. The size is checked before decoding.
    """
    image = _open(data)
    width, height = image.size
    if width * height > max_pixels:
        raise ImageError(f"the image is {width} x {height}, over {max_pixels} pixels; send a smaller one")
    try:
        image.load()
        return np.array(_to_rgb(_upright(image)))
    except Exception as error:  # Pillow's decoders raise many kinds of errors on damaged data
        raise ImageError(f"the image is damaged or cut short: {error}") from error


def num_pixels(image: Input) -> int:
    """Return the pixels of an image that would be decoded; 0 if it would be refused before."""
    if isinstance(image, PixelArray):
        return image.pixels.size // 3
    if not isinstance(image, EncodedImage):
        return 0
    try:
        width, height = _open(image.data).size
    except ImageError:
        return 0
    return width * height if width * height <= image.max_pixels else 0


def _open(data: bytes) -> Image.Image:
    try:
        return Image.open(BytesIO(data), formats=FORMATS)
    except Image.DecompressionBombError:
        raise ImageError("the image has far too many pixels; send a smaller one") from None
    except Exception as error:
        raise ImageError(f"not an image of a kind that is read here ({', '.join(FORMATS)})") from error


def _upright(image: Image.Image) -> Image.Image:
    try:
        orientation = image.getexif().get(_EXIF_ORIENTATION)
    except Exception:  # noqa: BLE001  damaged metadata is no reason to refuse good pixels
        return image
    transpose = _UPRIGHT.get(orientation) if isinstance(orientation, int) else None
    return image if transpose is None else image.transpose(transpose)


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):  # 16-bit grey, which `convert` would clip to white
        grey = np.asarray(image).astype(np.uint32) >> 8
        image = Image.fromarray(grey.astype(np.uint8))
    return image if image.mode == "RGB" else image.convert("RGB")


Preprocess = Callable[[NDArray[np.uint8]], NDArray[np.float32]]


class ImagePreprocessor:
    """Makes items whose features are fp32 pixels [3, H, W]."""

    def __init__(self, preprocess: Preprocess) -> None:
        self._preprocess = preprocess
        self._shape = preprocess(np.zeros((8, 8, 3), dtype=np.uint8)).shape

    def estimate(self, inputs: Sequence[Input]) -> int:
        return 0

    def costs(self, inputs: Sequence[Input]) -> list[int]:
        """Return the cost of each image by its size, which the beginning of its file states."""
        return [1 + num_pixels(item) // PIXELS_PER_UNIT for item in inputs]

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
        raise TypeError(
            "this model classifies images; give a path, the bytes of an image file, or a uint8 array "
            f"[height, width, 3], not {type(value).__name__}"
        )

    def from_card(self, stored: str) -> Input:
        """Decode base64, the form in which a card stores image files."""
        return EncodedImage(base64.b64decode(stored))

    def probe_inputs(self) -> list[Input]:
        """Return an image of the network's own size, and a wide one."""
        height, width = self._shape[1:]
        noise = np.random.default_rng(0)
        shapes = [(height, width, 3), (height, 2 * width, 3)]
        return [PixelArray(noise.integers(0, 256, shape, dtype=np.uint8)) for shape in shapes]

    def items(self, inputs: Sequence[Input], truncate: bool) -> list[Item]:
        return [Item(self._pixels(index, item), 0) for index, item in enumerate(inputs)]

    def _pixels(self, index: int, item: Input) -> NDArray[np.float32]:
        read = self._READERS.get(type(item))
        if read is None:
            raise UnusableInput(index, "this model classifies images; send an image")
        return read(self, index, item)

    def _decoded(self, index: int, item: EncodedImage) -> NDArray[np.float32]:
        try:
            return self._preprocess(decode_image(item.data, item.max_pixels))
        except ImageError as error:
            raise UnusableInput(index, str(error)) from error

    def _checked(self, index: int, item: PixelArray) -> NDArray[np.float32]:
        if item.pixels.dtype == np.uint8:
            return self._preprocess(item.pixels)
        if item.pixels.shape != self._shape:
            raise UnusableInput(
                index,
                f"pixel_values of shape {list(item.pixels.shape)}, this model takes {list(self._shape)}",
            )
        return item.pixels.astype(np.float32)

    _READERS: ClassVar[dict[type[Input], Callable[[Any, int, Any], NDArray[np.float32]]]] = {
        EncodedImage: _decoded,
        PixelArray: _checked,
    }
