"""The text task: texts and pairs of texts.

V2 requests have the tensor `text`, BYTES [N] or [N,1], and for pairs `text_pair` with as many items.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar, cast

from pydantic import BaseModel, ConfigDict

from fewshard_core.values import Input, TextInput
from fewshard_serve.errors import MalformedRequest, TooLarge, UnusableItem
from fewshard_serve.protocol.inputs import bytes_elements, check_bytes
from fewshard_serve.protocol.limits import Limits
from fewshard_serve.protocol.tasks.base import InputTensor, Task
from fewshard_serve.protocol.tensors import Tensor

SAMPLE_TEXT = "a gripping and often funny film"


class Pair(BaseModel):
    """A text, or a pair of texts, as one item."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    text: str
    text_pair: str | None = None


class TextTask(Task):
    name = "text"
    plural = "texts"
    architecture = "ForSequenceClassification"

    json_types: ClassVar[tuple[Any, ...]] = (str, Pair)
    json_help = 'inputs must be a text, {"text", "text_pair"}, or a list of these'
    json_refusal = 'a text model takes strings or {"text", "text_pair"}'
    body_refusal = 'classifies text; send JSON: {"inputs": "a text"}'

    tensors: ClassVar[tuple[InputTensor, ...]] = (
        InputTensor("text", "BYTES", (-1,), "the texts"),
        InputTensor("text_pair", "BYTES", (-1,), "optional: each text's second"),
    )
    takes_texts = True

    def from_json(self, index: int, item: str | Pair, limits: Limits) -> TextInput:
        text, pair = (item, None) if isinstance(item, str) else (item.text, item.text_pair)
        return text_input(index, text, pair, limits)

    def check_tensor(self, name: str, datatype: str, shape: tuple[int, ...], limits: Limits) -> None:
        check_bytes(name, datatype, shape, limits)

    def from_tensors(self, inputs: Mapping[str, Tensor], limits: Limits) -> list[Input]:
        if "text" not in inputs:
            raise MalformedRequest("the input `text` is missing; send BYTES of shape [N]")
        texts = bytes_elements(inputs["text"], limits)
        if "text_pair" not in inputs:
            return [text_input(index, text, None, limits) for index, text in enumerate(texts)]
        pairs = bytes_elements(inputs["text_pair"], limits)
        if len(pairs) != len(texts):
            raise MalformedRequest(f"text has {len(texts)} items, text_pair has {len(pairs)}; send as many")
        items = enumerate(zip(texts, pairs, strict=True))
        return [text_input(index, text, pair, limits) for index, (text, pair) in items]

    def from_bytes(self, raw: bytes, limits: Limits) -> TextInput:
        return text_input(0, raw, None, limits)

    def sample_call(self, url: str) -> str:
        body = json.dumps({"inputs": SAMPLE_TEXT})
        return f"curl {url} -H 'Content-Type: application/json' -d '{body}'"

    def with_routing(self, inputs: Sequence[Input]) -> list[Input]:
        return [replace(cast(TextInput, each), wants_routing=True) for each in inputs]


def text_input(index: int, text: str | bytes, pair: str | bytes | None, limits: Limits) -> TextInput:
    """Item `index` as one text or a pair. Raises `TooLarge`, or `UnusableItem` if bytes are not UTF-8."""
    second = None if pair is None else _checked_text(index, pair, limits)
    return TextInput(_checked_text(index, text, limits), second)


def _checked_text(index: int, text: str | bytes, limits: Limits) -> str:
    # A character has at most four bytes, so only texts near the limit need to be encoded to measure them.
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
