"""Decodes image files that strangers sent; called by the model backends, off the event loop."""

from io import BytesIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image

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


class ImageError(ValueError):
    """The bytes are not an image that can be used; the message says why."""


def decode_image(data: bytes, max_pixels: int = 25_000_000) -> NDArray[np.uint8]:
    """The pixels of an image file: uint8 [height, width, 3] RGB, upright as its EXIF orientation says.

    Of an animation the first frame. Alpha is dropped and palettes and CMYK are converted as Pillow's
    `convert("RGB")` does, which is what checkpoints were trained on; 16-bit grey is scaled to 8 bits.
    Raises `ImageError`; the size is checked before anything is decoded.
    """
    image = _open(data)
    width, height = image.size
    if width * height > max_pixels:
        raise ImageError(f"the image is {width} x {height}, over {max_pixels} pixels; send a smaller one")
    try:
        image.load()
        return np.array(_to_rgb(_upright(image)))
    except Exception as error:  # Pillow's decoders raise many types over damaged data
        raise ImageError(f"the image is damaged or cut short: {error}") from error


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
