"""What may be classified, as the JSON that the server reads."""

import base64
import mimetypes
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fewshard_serve.client.errors import ClientError

UNKNOWN_TYPE = "application/octet-stream"


@dataclass(frozen=True, slots=True)
class TextPair:
    """Two texts that are one item, as in entailment."""

    text: str
    text_pair: str


@dataclass(frozen=True, slots=True)
class Image:
    """An image file's bytes."""

    data: bytes
    media_type: str = UNKNOWN_TYPE


Input = str | TextPair | Image | Path
"""A text, a pair of texts, or an image, by its bytes or the path of its file."""


def as_json(inputs: Input | Sequence[Input]) -> list[Any]:
    """One entry an input. Raises `ClientError` for a file that cannot be read, and for any other type."""
    given = [inputs] if isinstance(inputs, str | TextPair | Image | Path) else inputs
    return [_one(each) for each in given]


def _one(given: Input) -> Any:
    if isinstance(given, str):
        return given
    if isinstance(given, TextPair):
        return {"text": given.text, "text_pair": given.text_pair}
    image = _read(given) if isinstance(given, Path) else given
    if not isinstance(image, Image):
        advice = "give a text, a TextPair, the Path of an image file, or an Image of such a file's bytes"
        raise ClientError(f"a {type(given).__name__} cannot be classified: {advice}")
    return f"data:{image.media_type};base64,{base64.b64encode(image.data).decode('ascii')}"


def _read(path: Path) -> Image:
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ClientError(f"the image {path} cannot be read: {error.strerror}") from None
    return Image(data, mimetypes.guess_type(path.name)[0] or UNKNOWN_TYPE)
