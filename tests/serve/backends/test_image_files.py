"""Decoding image files: every format and mode to upright RGB, and everything that is not an image refused."""

import io
import struct
import time
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from fewshard_models.classifier.image_files import (
    FORMATS,
    ImageError,
    decode_image,
    image_size,
    read_image,
)

RED, GREEN, BLUE, WHITE = (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255)


def encoded(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def corners() -> Image.Image:
    """Red, green, blue and white quarters, 4 wide and 2 high: each orientation looks different."""
    image = Image.new("RGB", (4, 2))
    for (x, y), colour in {(0, 0): RED, (2, 0): GREEN, (0, 1): BLUE, (2, 1): WHITE}.items():
        image.paste(colour, (x, y, x + 2, y + 1))
    return image


def png_header(width: int, height: int) -> bytes:
    """A PNG that claims a size and has no pixels."""
    chunk = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + chunk + struct.pack(">I", zlib.crc32(chunk))


@pytest.mark.parametrize(
    ("kind", "options"), [("PNG", {}), ("BMP", {}), ("GIF", {}), ("WEBP", {"lossless": True})]
)
def test_lossless_formats_keep_every_pixel(kind: str, options: dict[str, object]) -> None:
    pixels = decode_image(encoded(corners(), kind, **options))
    assert pixels.dtype == np.uint8
    assert pixels.shape == (2, 4, 3)
    assert np.array_equal(pixels, np.asarray(corners()))


def test_jpeg_is_near() -> None:
    image = Image.new("RGB", (16, 16), (200, 30, 90))
    assert np.abs(decode_image(encoded(image, "JPEG")).astype(int) - (200, 30, 90)).max() <= 3


@pytest.mark.parametrize(
    ("mode", "colour", "expected"),
    [
        ("1", 1, (255, 255, 255)),
        ("L", 77, (77, 77, 77)),
        ("LA", (77, 0), (77, 77, 77)),
        ("RGBA", (10, 20, 30, 0), (10, 20, 30)),
        ("I;16", 0x4D99, (0x4D, 0x4D, 0x4D)),
        ("I;16", 0xFFFF, (255, 255, 255)),
    ],
)
def test_every_mode_becomes_rgb(mode: str, colour: int | tuple[int, ...], expected: tuple[int, ...]) -> None:
    assert decode_image(encoded(Image.new(mode, (3, 2), colour))).tolist() == [[list(expected)] * 3] * 2


def test_palettes_become_rgb_with_and_without_transparency() -> None:
    image = corners().convert("P", palette=Image.Palette.ADAPTIVE)
    assert np.array_equal(decode_image(encoded(image)), np.asarray(corners()))
    assert np.array_equal(decode_image(encoded(image, transparency=0)), np.asarray(corners()))


def test_cmyk_jpeg_becomes_rgb() -> None:
    pixels = decode_image(encoded(Image.new("CMYK", (16, 16), (0, 255, 255, 0)), "JPEG"))
    assert np.abs(pixels.astype(int) - RED).max() <= 3


def test_of_an_animation_the_first_frame_counts() -> None:
    frames = [Image.new("RGB", (3, 2), colour) for colour in (GREEN, BLUE)]
    for kind in ("GIF", "WEBP", "PNG"):
        data = encoded(frames[0], kind, save_all=True, append_images=frames[1:], lossless=True)
        assert decode_image(data).tolist() == [[list(GREEN)] * 3] * 2


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_honoured(kind: str, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    upright = Image.new("RGB", (32, 16), RED)
    upright.paste(BLUE, (0, 0, 8, 8))
    stored = upright.transpose(INVERSE[orientation]) if orientation > 1 else upright
    pixels = decode_image(encoded(stored, kind, exif=exif.tobytes()))
    assert pixels.shape == (16, 32, 3)
    assert pixels[3, 3, 2] > 200
    assert pixels[12, 28, 0] > 200


INVERSE = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_90,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}
"""What a camera did to an upright picture before it wrote each orientation."""


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")
@pytest.mark.parametrize("exif", [b"Exif\0\0", b"Exif\0\0garbage", b"Exif\0\0II*\0\xff\xff\xff\xff"])
def test_damaged_exif_is_no_reason_to_refuse(exif: bytes) -> None:
    assert decode_image(encoded(Image.new("RGB", (8, 8), RED), "JPEG", exif=exif)).shape == (8, 8, 3)


def test_the_result_owns_its_pixels() -> None:
    pixels = decode_image(encoded(corners()))
    assert pixels.flags.c_contiguous
    assert pixels.flags.owndata
    assert pixels.flags.writeable


@pytest.mark.parametrize(
    ("data", "seen"),
    [
        (b"not an image", r"\)$"),
        (b"%PDF-1.7", "begins as a PDF"),
        (b"<svg/>", "begins as XML, HTML or SVG"),
        (b"II*\0....", "begins as a TIFF"),
        (b"\0\0\0\x20ftypheic", "begins as an AVIF, HEIC or video"),
        (b"iVBORw0KGgoAAAA", "begins as base64 of a PNG; send the bytes"),
        (b"data:image/png;base64,iVBOR", "begins as a data URL; send the bytes"),
    ],
)
def test_what_is_not_an_image_is_refused_as_what_it_is(data: bytes, seen: str) -> None:
    with pytest.raises(ImageError, match=rf"not an image of a kind that is read here \(PNG, JPEG.*{seen}"):
        decode_image(data)


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"", "an empty file"),
        (b"\x89PNG\r\n\x1a\n", "begins as a PNG whose header is damaged or cut short"),
        (b"\xff\xd8\xff", "begins as a JPEG whose header is damaged or cut short"),
        (b"GIF89a", "begins as a GIF whose header is damaged or cut short"),
        (b"RIFF....WEBP", "begins as a WebP whose header is damaged or cut short"),
    ],
)
def test_each_failure_has_its_own_message(data: bytes, said: str) -> None:
    with pytest.raises(ImageError, match=said):
        decode_image(data)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
def test_a_large_colour_profile_is_no_reason_to_refuse(kind: str) -> None:
    image = corners().resize((64, 32), Image.Resampling.NEAREST)
    profile = b"\0" * 3_000_000
    with_profile = encoded(image, kind, icc_profile=profile, lossless=True)
    assert np.array_equal(decode_image(with_profile), decode_image(encoded(image, kind, lossless=True)))
    assert image_size(with_profile) == (64, 32)


def test_of_a_png_with_a_large_profile_everything_else_is_kept() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    image = corners().convert("P", palette=Image.Palette.ADAPTIVE)
    data = encoded(image, icc_profile=b"\0" * 3_000_000, exif=exif.tobytes(), transparency=0)
    assert np.array_equal(decode_image(data), np.rot90(np.asarray(corners()), 3))


def test_damaged_pixels_are_told_from_a_damaged_header() -> None:
    data = encoded(Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)))
    with pytest.raises(ImageError, match="the PNG image is damaged or cut short"):
        decode_image(data[: len(data) // 2])


def test_long_texts_in_a_png_are_no_reason_to_refuse() -> None:
    info = PngInfo()
    info.add_text("note", "x" * 3_000_000, zip=True)
    info.add_itxt("XML:com.adobe.xmp", "x" * 3_000_000, zip=True)
    assert decode_image(encoded(corners(), pnginfo=info)).shape == (2, 4, 3)


@pytest.mark.parametrize("size", [(1, 1), (300, 200), (2000, 17)])
@pytest.mark.parametrize(
    ("kind", "mode", "options"),
    [
        ("WEBP", "RGB", {"lossless": True}),
        ("WEBP", "RGB", {"quality": 50}),
        ("WEBP", "RGBA", {"quality": 50}),
        ("WEBP", "RGB", {"save_all": True, "append_images": [Image.new("RGB", (5, 5))]}),
        ("PNG", "RGB", {}),
        ("JPEG", "RGB", {}),
        ("GIF", "P", {}),
        ("BMP", "RGB", {}),
    ],
)
def test_the_size_is_read_from_the_header(
    kind: str, mode: str, options: dict[str, object], size: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    if "append_images" in options:
        options = {**options, "append_images": [Image.new("RGB", size, (1, 2, 3))]}
    data = encoded(Image.new(mode, size), kind, **options)
    if kind == "WEBP":
        monkeypatch.setattr(Image, "open", lambda *given, **options: pytest.fail("it was opened"))
    assert image_size(data) == size


def test_a_webp_bomb_is_refused_before_pillow_allocates_its_pixels(monkeypatch: pytest.MonkeyPatch) -> None:
    data = bytearray(encoded(Image.new("RGBA", (5, 5)), "WEBP", quality=50))
    assert data[12:16] == b"VP8X"
    data[24:30] = b"\xff\x3f\x00\xff\x3f\x00"
    monkeypatch.setattr(Image, "open", lambda *given, **options: pytest.fail("it was opened"))
    with pytest.raises(ImageError, match="16384 x 16384"):
        decode_image(bytes(data))


def test_a_mode_with_alpha_keeps_it() -> None:
    data = encoded(Image.new("RGBA", (3, 2), (10, 20, 30, 40)))
    assert read_image(data, mode="RGBA").getpixel((1, 1)) == (10, 20, 30, 40)
    assert read_image(data, mode="L").getpixel((1, 1)) == 18


@pytest.mark.parametrize("kind", ["TIFF", "PPM", "ICO", "PCX"])
def test_other_formats_are_refused(kind: str) -> None:
    assert kind not in FORMATS
    with pytest.raises(ImageError, match="not an image of a kind"):
        decode_image(encoded(corners(), kind))


@pytest.mark.parametrize("kind", FORMATS)
def test_a_file_cut_short_is_refused(kind: str) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    data = encoded(Image.fromarray(noise), kind)
    for part in (0.2, 0.5, 0.9):
        with pytest.raises(ImageError):
            decode_image(data[: int(len(data) * part)])


@pytest.mark.parametrize(
    ("width", "height"), [(5001, 5000), (60_000, 60_000), (2**31 - 1, 2**31 - 1), (0, 0)]
)
def test_a_bomb_is_refused_from_its_header(width: int, height: int) -> None:
    started_at = time.monotonic()
    with pytest.raises(ImageError):
        decode_image(png_header(width, height))
    assert time.monotonic() - started_at < 1


def test_the_limit_is_the_product_of_the_sides() -> None:
    data = encoded(Image.new("RGB", (20, 10)))
    assert decode_image(data, max_pixels=200).shape == (10, 20, 3)
    with pytest.raises(ImageError, match="20 x 10, over 199 pixels"):
        decode_image(data, max_pixels=199)


def test_a_real_bomb_is_refused_before_it_is_unpacked() -> None:
    data = encoded(Image.new("1", (8000, 8000)))
    assert len(data) < 20_000
    with pytest.raises(ImageError, match="8000 x 8000"):
        decode_image(data)


@given(st.data())
def test_damage_never_raises_anything_but_image_error(data: st.DataObject) -> None:
    kind = data.draw(st.sampled_from(FORMATS))
    damaged = bytearray(encoded(corners(), kind))
    for _ in range(data.draw(st.integers(1, 4))):
        damaged[data.draw(st.integers(0, len(damaged) - 1))] = data.draw(st.integers(0, 255))
    try:
        pixels = decode_image(bytes(damaged), max_pixels=100_000)
    except ImageError:
        return
    assert pixels.dtype == np.uint8
    assert pixels.shape[2] == 3


def test_a_file_name_is_not_opened(tmp_path: Path) -> None:
    path = tmp_path / "image.png"
    corners().save(path)
    with pytest.raises(ImageError):
        decode_image(str(path).encode())
