"""Checks single items against the limits; shared by the V2 and the classify parsers."""

import base64
import binascii

from fewshard_core.values import EncodedImage, TextInput
from fewshard_serve.errors import MalformedRequest, TooLarge, UnusableItem
from fewshard_serve.protocol.limits import Limits


def check_num_items(num_items: int, limits: Limits) -> None:
    """Raises `TooLarge` above `max_items`, `MalformedRequest` for none."""
    if num_items > limits.max_items:
        raise TooLarge(
            f"the request has {num_items} items, at most {limits.max_items} are taken (max_items); split it"
        )
    if num_items == 0:
        raise MalformedRequest("the request has no items; send at least one")


def text_input(
    index: int, text: str | bytes, pair: str | bytes | None, limits: Limits, wants_routing: bool = False
) -> TextInput:
    """Item `index` as one text or a pair. Raises `TooLarge`, or `UnusableItem` where bytes are not UTF-8."""
    second = None if pair is None else _checked_text(index, pair, limits)
    return TextInput(_checked_text(index, text, limits), second, wants_routing)


def image_from_base64(index: int, text: str, limits: Limits) -> EncodedImage:
    """Item `index` from base64 or a `data:` URL. Raises `UnusableItem` where it is neither."""
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


def _checked_text(index: int, text: str | bytes, limits: Limits) -> str:
    # A character is at most four bytes: only texts near the limit need to be encoded to be measured.
    if len(text) > limits.max_text_bytes // 4:
        num_bytes = len(text.encode()) if isinstance(text, str) else len(text)
        if num_bytes > limits.max_text_bytes:
            raise TooLarge(
                f"item {index}: the text has {num_bytes} bytes, at most {limits.max_text_bytes} are taken "
                "(max_text_bytes)"
            )
    if isinstance(text, str):
        return text
    try:
        return text.decode()
    except UnicodeDecodeError as error:
        raise UnusableItem(index, f"the text is not UTF-8: {error.reason} at byte {error.start}") from None
