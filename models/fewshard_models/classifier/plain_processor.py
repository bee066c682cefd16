"""Image processors that only resize, crop, scale and normalise, without transformers.

Most checkpoints have one. A server prepares images in a process that need not import transformers, which
takes seconds and 300 MB. `image_processor` uses it only where it gives the very numbers of transformers'.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from math import ceil
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

_STEPS = (
    "__call__", "preprocess", "process_image", "_preprocess", "resize", "center_crop", "rescale", "normalize",
)  # fmt: skip
_PROBES = ((64, 64), (71, 40), (40, 97), (300, 500))


@dataclass(frozen=True, slots=True)
class PlainProcessor:
    """Makes `pixel_values`, fp32 [C, H, W], of one image.

    mode: the mode of Pillow that it takes.
    size: height and width after resizing, or the short edge alone; None if images are not resized.
    resample: Pillow's filter.
    crop: height and width of the centre that is kept; None to keep all.
    values: fp32 [C, 256], what each of a byte's values becomes in each channel.
    """

    mode: str
    size: tuple[int, int] | int | None
    resample: int
    crop: tuple[int, int] | None
    values: NDArray[np.float32]

    def __call__(self, image: Image.Image) -> Mapping[str, NDArray[np.float32]]:
        """Prepare an image of `mode`."""
        if self.size is not None:
            image = image.resize(self._new_size(*image.size), resample=self.resample)
        pixels = np.asarray(image).reshape(image.height, image.width, -1)
        if self.crop is not None:
            high, wide = self.crop
            top, left = (image.height - high) // 2, (image.width - wide) // 2
            pixels = pixels[top : top + high, left : left + wide]
        channels = zip(self.values, np.moveaxis(pixels, -1, 0), strict=True)
        return {"pixel_values": np.stack([values.take(channel) for values, channel in channels])}

    def resized_size(self, width: int, height: int) -> tuple[int, int]:
        """Return upper bounds of width and height after resizing, before any crop."""
        if isinstance(self.size, int):
            scale = self.size / min(width, height)
            return ceil(width * scale), ceil(height * scale)
        return (width, height) if self.size is None else (self.size[1], self.size[0])

    def _new_size(self, width: int, height: int) -> tuple[int, int]:
        if not isinstance(self.size, int):
            assert self.size is not None
            return self.size[1], self.size[0]
        long = int(self.size * max(width, height) / min(width, height))
        return (self.size, long) if width <= height else (long, self.size)


def plain_processor(processor: Any, mode: str) -> PlainProcessor | None:
    """Return the plain form of a processor of transformers; None if it has none that gives the same."""
    from transformers.image_processing_backends import PilBackend

    kind = type(processor)
    if not issubclass(kind, PilBackend) or any(
        getattr(kind, step, None) is not getattr(PilBackend, step, None) for step in _STEPS
    ):
        return None
    if getattr(processor, "do_pad", None):
        return None
    try:
        plain = _read(processor, mode)
        return plain if _agrees(plain, processor) else None
    except Exception:  # noqa: BLE001  settings of many kinds; the processor itself tells what is wrong with them
        return None


def _read(processor: Any, mode: str) -> PlainProcessor:
    """Raises many kinds of errors for settings that no plain processor has."""
    crop = _edges(processor.crop_size) if processor.do_center_crop else None
    size = _size(processor.size) if processor.do_resize else None
    resample = 2 if processor.resample is None else int(processor.resample)
    if crop is not None:
        smallest = (size, size) if isinstance(size, int) else size
        assert smallest is not None
        assert crop[0] <= smallest[0]
        assert crop[1] <= smallest[1]
    return PlainProcessor(
        mode, size, resample, crop, _values(processor, len(Image.new(mode, (1, 1)).getbands()))
    )


def _values(processor: Any, num_channels: int) -> NDArray[np.float32]:
    """Return what each of a byte's values becomes, in the precision of transformers."""
    values: NDArray[np.float32] = np.arange(256, dtype=np.float32)[None].repeat(num_channels, axis=0)
    if processor.do_rescale:
        values = (values.astype(np.float64) * processor.rescale_factor).astype(np.float32)
    if processor.do_normalize:
        mean, std = (
            np.broadcast_to(np.array(each, dtype=np.float32), num_channels)[:, None]
            for each in (processor.image_mean, processor.image_std)
        )
        values = (values - mean) / std
    return values


def _size(size: Any) -> tuple[int, int] | int:
    given = {name: value for name, value in dict(size).items() if value}
    return int(given["shortest_edge"]) if set(given) == {"shortest_edge"} else _edges(given)


def _edges(size: Any) -> tuple[int, int]:
    given = {name: value for name, value in dict(size).items() if value}
    assert set(given) == {"height", "width"}
    return int(given["height"]), int(given["width"])


def _agrees(plain: PlainProcessor, processor: Any) -> bool:
    """Return whether both make the same of images of several shapes."""
    generator = np.random.default_rng(0)
    bands = len(Image.new(plain.mode, (1, 1)).getbands())
    for width, height in _PROBES:
        pixels = generator.integers(0, 256, (height, width, bands), dtype=np.uint8)
        image = Image.fromarray(pixels.squeeze(-1) if bands == 1 else pixels, plain.mode)
        made = processor(images=image, return_tensors="np")
        if set(made) != {"pixel_values"}:
            return False
        if not np.array_equal(made["pixel_values"][0].astype(np.float32), plain(image)["pixel_values"]):
            return False
    return True
