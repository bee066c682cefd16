"""Adapters for each server: how to send it one text, and how to read the label. Does not import Locust."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from fewshard_loadtest.payloads import Payload
from fewshard_loadtest.protocols import JSON_HEADERS, PROTOCOLS, Request


@dataclass(frozen=True, slots=True)
class Adapter:
    """The request and response format of one server.

    request: builds a request from a model's name and the texts of one request.
    label: reads the best label of the first text from the decoded response.
    """

    request: Callable[[str, Sequence[str]], Request]
    label: Callable[[Any], str]

    def label_in(self, answer: bytes) -> str:
        """The best label of the response's first text. Raises ValueError if it has none."""
        try:
            return self.label(json.loads(answer))
        except (LookupError, TypeError) as error:
            raise ValueError(f"the answer names no label: {answer[:200]!r}") from error


def _one_text(path: str, body: Callable[[str, str], Any]) -> Callable[[str, Sequence[str]], Request]:
    def request(model: str, texts: Sequence[str]) -> Request:
        if len(texts) != 1:
            raise ValueError(f"{path} is asked for one text a request, not {len(texts)}")
        content = json.dumps(body(model, texts[0]), ensure_ascii=False).encode()
        return Request(path, JSON_HEADERS, content, b'"label"')

    return request


def _ours(model: str, texts: Sequence[str]) -> Request:
    return PROTOCOLS["classify"].body(model, Payload("", tuple(texts)), range(len(texts)))


def _best(entries: Sequence[dict[str, Any]]) -> str:
    return str(max(entries, key=lambda entry: entry["score"])["label"])


DIALECTS: dict[str, Adapter] = {
    "fewshard": Adapter(_ours, lambda answer: _best(answer["predictions"][0])),
    "litserve": Adapter(_one_text("/predict", lambda _, text: {"text": text}), lambda a: str(a["label"])),
    "rayserve": Adapter(_one_text("/", lambda _, text: {"text": text}), lambda a: str(a["label"])),
    "bentoml": Adapter(
        _one_text("/classify", lambda _, text: {"texts": [text]}), lambda a: str(a[0]["label"])
    ),
    "mosec": Adapter(_one_text("/inference", lambda _, text: {"text": text}), lambda a: str(a["label"])),
    "infinity": Adapter(
        _one_text("/classify", lambda model, text: {"model": model, "input": [text]}),
        lambda answer: _best(answer["data"][0]),
    ),
}
