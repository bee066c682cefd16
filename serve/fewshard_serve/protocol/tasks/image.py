"""The image task: image files, RGB pixels, or normalised pixels.

V2 requests have one of these tensors:
- `image` UINT8 [N,H,W,3], or [H,W,3] for one item: RGB pixels;
- `image` BYTES [N] or [N,1]: image files; in JSON as base64 or a data URL;
- `pixel_values` FP32, FP16 or BF16 [N,3,H,W] or [3,H,W]: normalised as the model expects.
"""

import base64
import binascii
from collections.abc import Mapping
from math import prod
from pathlib import Path

import numpy as np

from fewshard_core.values import EncodedImage, Input, PixelArray
from fewshard_serve.errors import MalformedRequest, UnusableItem
from fewshard_serve.protocol.inputs import bytes_elements, check_bytes, check_num_items
from fewshard_serve.protocol.limits import Limits
from fewshard_serve.protocol.tasks.base import InputTensor, Task
from fewshard_serve.protocol.tensors import Tensor


class ImageTask(Task):
    name = "image"
    plural = "images"
    architecture = "ForImageClassification"

    json_types = (str,)
    json_help = "an image is a base64 string"
    json_refusal = "an image model takes base64 strings or data URLs, not texts"

    media_range = "image/*"
    # PNG, JPEG, WebP, GIF, BMP, TIFF. No JSON begins so.
    signatures = (b"\x89PNG", b"\xff\xd8\xff", b"RIFF", b"GIF8", b"BM", b"II*\0", b"MM\0*")
    file_help = "the image file itself as image/*"
    body_refusal = "classifies images; send the image file itself as image/*, or JSON"

    tensors = (
        InputTensor("image", "UINT8", (-1, -1, -1, 3), "RGB pixels"),
        InputTensor("image", "BYTES", (-1,), "image files"),
        InputTensor("pixel_values", "FP32", (-1, 3, -1, -1), "normalised pixels"),
    )

    def from_json(self, index: int, item: str, limits: Limits) -> EncodedImage:
        return image_from_base64(index, item, limits)

    def check_tensor(self, name: str, datatype: str, shape: tuple[int, ...], limits: Limits) -> None:
        if name == "pixel_values":
            _check_normalised(datatype)
            _check_pixels(name, shape, "3HW", limits)
        elif datatype == "UINT8":
            _check_pixels(name, shape, "HW3", limits)
        elif datatype == "BYTES":
            check_bytes(name, datatype, shape, limits)
        else:
            raise MalformedRequest(f"image must be UINT8 pixels or BYTES of image files, not {datatype}")

    def from_tensors(self, inputs: Mapping[str, Tensor], limits: Limits) -> list[Input]:
        if len(inputs) > 1:
            raise MalformedRequest("send image or pixel_values, not both")
        (tensor,) = inputs.values()
        self.check_tensor(tensor.name, tensor.datatype, tensor.shape, limits)
        if tensor.name == "pixel_values":
            return _normalised_images(tensor)
        return _encoded_images(tensor, limits) if tensor.datatype == "BYTES" else [*_pixel_arrays(tensor)]

    def from_bytes(self, raw: bytes, limits: Limits) -> EncodedImage:
        return EncodedImage(raw, limits.max_image_pixels)

    def sample_call(self, url: str) -> str:
        return f"curl {url} -H 'Content-Type: image/png' --data-binary @image.png"

    def from_table(self, cell: str, folder: Path) -> Path:
        return folder / cell


def image_from_base64(index: int, text: str, limits: Limits) -> EncodedImage:
    """Read item `index` from base64 or a `data:` URL. Raises `UnusableItem` if it is neither."""
    payload = text
    if text.startswith("data:"):
        head, _, payload = text.partition(",")
        if not head.endswith(";base64"):
            raise UnusableItem(index, "the data URL is not base64; send data:image/<kind>;base64,<data>")
    try:
        data = base64.b64decode("".join(payload.split()), validate=True)
    except (binascii.Error, ValueError):
        raise UnusableItem(index, "the image is not valid base64; send base64 or a data URL") from None
    return EncodedImage(data, limits.max_image_pixels)


def _encoded_images(tensor: Tensor, limits: Limits) -> list[Input]:
    return [_encoded_image(index, data, limits) for index, data in enumerate(bytes_elements(tensor, limits))]


def _encoded_image(index: int, data: str | bytes, limits: Limits) -> EncodedImage:
    if isinstance(data, str):
        return image_from_base64(index, data, limits)
    return EncodedImage(data, limits.max_image_pixels)


def _check_normalised(datatype: str) -> None:
    if datatype not in ("FP32", "FP16", "BF16"):
        raise MalformedRequest(f"pixel_values must be FP32, FP16 or BF16, not {datatype}")


def _normalised_images(tensor: Tensor) -> list[Input]:
    images = _pixel_arrays(tensor)
    for index, image in enumerate(images):
        if not np.isfinite(image.pixels).all():
            raise UnusableItem(index, "pixel_values holds NaN or infinity; send finite numbers")
    return [PixelArray(np.asarray(image.pixels, dtype=np.float32)) for image in images]


def _check_pixels(name: str, shape: tuple[int, ...], layout: str, limits: Limits) -> None:
    """Check the shape of pixels. `layout`: its last three dimensions, "HW3" or "3HW"."""
    channels = layout.index("3") - 3
    if len(shape) not in (3, 4) or shape[channels] != 3:
        wanted = ",".join(layout)
        raise MalformedRequest(f"{name} must have shape [N,{wanted}] or [{wanted}], not {list(shape)}")
    check_num_items(shape[0] if len(shape) == 4 else 1, limits)
    if prod(shape[-3:]) // 3 > limits.max_image_pixels:
        raise UnusableItem(0, f"the image has over {limits.max_image_pixels} pixels (max_image_pixels)")


def _pixel_arrays(tensor: Tensor) -> list[PixelArray]:
    """The images of a tensor, as views."""
    batch = tensor.data if tensor.data.ndim == 4 else tensor.data[np.newaxis]
    return [PixelArray(image) for image in batch]
