"""Decodes untrusted image files.

This file does not import torch: a server decodes in a process that runs no network.
"""

from io import BytesIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from fewshard_core.errors import FewshardError

FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP")
MAX_PIXELS = 25_000_000

_OTHER_KINDS = {
    b"%PDF": "a PDF",
    b"II*\0": "a TIFF",
    b"MM\0*": "a TIFF",
    b"\0\0\1\0": "an icon",
    b"\xff\x0a": "a JPEG XL",
    b"<": "XML, HTML or SVG",
    b"{": "JSON",
    b"iVBOR": "base64 of a PNG; send the bytes that it stands for",
    b"/9j/": "base64 of a JPEG; send the bytes that it stands for",
    b"data:": "a data URL; send the bytes that it stands for",
}
"""What files are that people send for images, by their first bytes."""

_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_PNG_FIRST_CHUNK = b"\0\0\0\rIHDR"
_PNG_NOTES = frozenset({b"iCCP", b"tEXt", b"zTXt", b"iTXt"})
"""Chunks of a PNG that are not needed for its pixels. Pillow refuses the whole file if one exceeds 1 MiB."""

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


def decode_image(data: bytes, max_pixels: int = MAX_PIXELS) -> NDArray[np.uint8]:
    """Return the pixels of an image file: uint8 [height, width, 3] RGB. See `read_image`."""
    return np.array(read_image(data, max_pixels))


def read_image(data: bytes, max_pixels: int = MAX_PIXELS, mode: str = "RGB") -> Image.Image:
    """Return a decoded image file in a mode of Pillow, rotated as its EXIF orientation says.

    Animations give their first frame. Alpha is dropped unless `mode` has it, and palettes and CMYK are
    converted, as by Pillow's `convert`, on whose output checkpoints were trained. 16-bit grey is scaled to
    8 bits. Raises `ImageError`. The size is checked before decoding.
    """
    try:
        return _read(data, max_pixels, mode)
    except ImageError:
        bare = _without_notes(data)
        if bare == data:
            raise
        return _read(bare, max_pixels, mode)


def image_size(data: bytes) -> tuple[int, int]:
    """Return width and height as the file's header states them, without decoding. Raises `ImageError`."""
    try:
        return _webp_size(data) or _png_size(data) or _open(data).size
    except ImageError:
        return _open(_without_notes(data)).size


def _png_size(data: bytes) -> tuple[int, int] | None:
    """Return the size of a PNG as its first chunk states it, without opening it; None for other files."""
    if len(data) < 33 or not data.startswith(_PNG_SIGNATURE) or data[8:16] != _PNG_FIRST_CHUNK:
        return None
    return int.from_bytes(data[16:20], "big"), int.from_bytes(data[20:24], "big")


def _webp_size(data: bytes) -> tuple[int, int] | None:
    """Return the size of a WebP; None for other files. To open one, Pillow allocates all its pixels."""
    if len(data) < 30 or (data[:4], data[8:12]) != (b"RIFF", b"WEBP"):
        return None
    first, second, both = (int.from_bytes(data[a:b], "little") for a, b in ((24, 27), (27, 30), (21, 25)))
    match data[12:16]:
        case b"VP8X":
            return first + 1, second + 1
        case b"VP8L":
            return (both & 0x3FFF) + 1, (both >> 14 & 0x3FFF) + 1
        case b"VP8 ":
            return int.from_bytes(data[26:28], "little") & 0x3FFF, int.from_bytes(
                data[28:30], "little"
            ) & 0x3FFF
    return None


def _read(data: bytes, max_pixels: int, mode: str) -> Image.Image:
    if size := _webp_size(data):
        _check_pixels(size, max_pixels)
    image = _open(data)
    _check_pixels(image.size, max_pixels)
    try:
        image.load()
        return _converted(_upright(image), mode)
    except Exception as error:  # Pillow's decoders raise many kinds of errors on damaged data
        raise ImageError(f"the {image.format} image is damaged or cut short: {error}") from error


def _check_pixels(size: tuple[int, int], max_pixels: int) -> None:
    width, height = size
    if width * height > max_pixels:
        raise ImageError(f"the image is {width} x {height}, over {max_pixels} pixels; send a smaller one")


def _open(data: bytes) -> Image.Image:
    if not data:
        raise ImageError("not an image but an empty file; send the bytes of an image file")
    try:
        return Image.open(BytesIO(data), formats=FORMATS)
    except Image.DecompressionBombError:
        raise ImageError("the image has far too many pixels; send a smaller one") from None
    except UnidentifiedImageError as error:
        raise ImageError(_unknown(data)) from error
    except Exception as error:
        raise ImageError(f"the image's header is damaged: {error}") from error


def _unknown(data: bytes) -> str:
    for first, kind in (
        (_PNG_SIGNATURE, "PNG"),
        (b"\xff\xd8\xff", "JPEG"),
        (b"GIF8", "GIF"),
        (b"RIFF", "WebP"),
    ):
        if data.startswith(first):
            return f"the file begins as a {kind} whose header is damaged or cut short; send the whole file"
    kind = next((kind for first, kind in _OTHER_KINDS.items() if data.startswith(first)), "")
    if data[4:8] == b"ftyp":
        kind = "an AVIF, HEIC or video"
    return f"not an image of a kind that is read here ({', '.join(FORMATS)})" + (
        f"; it begins as {kind}" if kind else ""
    )


def _without_notes(data: bytes) -> bytes:
    """Return a PNG without colour profile and texts; other files and damaged ones as they are."""
    if not data.startswith(_PNG_SIGNATURE):
        return data
    kept, at = [_PNG_SIGNATURE], len(_PNG_SIGNATURE)
    while at < len(data):
        end = at + 12 + int.from_bytes(data[at : at + 4], "big")
        if data[at + 4 : at + 8] not in _PNG_NOTES:
            kept.append(data[at:end])
        at = end
    return b"".join(kept)


def _upright(image: Image.Image) -> Image.Image:
    try:
        orientation = image.getexif().get(_EXIF_ORIENTATION)
    except Exception:  # noqa: BLE001  damaged metadata is no reason to refuse good pixels
        return image
    transpose = _UPRIGHT.get(orientation) if isinstance(orientation, int) else None
    return image if transpose is None else image.transpose(transpose)


def _converted(image: Image.Image, mode: str) -> Image.Image:
    if image.mode.startswith("I"):  # 16-bit grey, which `convert` would clip to white
        grey = np.asarray(image).astype(np.uint32) >> 8
        image = Image.fromarray(grey.astype(np.uint8))
    return image if image.mode == mode else image.convert(mode)
