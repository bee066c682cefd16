"""Explains an answer by occlusion: the text is classified again without each of its words.

Zeiler, Fergus: "Visualizing and Understanding Convolutional Networks", ECCV 2014 (occlusion); for words: Li,
Monroe, Jurafsky: "Understanding Neural Networks through Representation Erasure", 2016. The HTTP handlers of
the replicas call it.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, Field
from pydantic_core import to_json

from fewshard_core.activation import activate
from fewshard_core.values import Input, ModelInfo, TextInput
from fewshard_serve.core import Classified
from fewshard_serve.errors import MalformedRequest, TooLarge
from fewshard_serve.protocol.classify import TimingsMs, Usage, degraded, parse_body, timings_ms
from fewshard_serve.protocol.json_guard import nearest
from fewshard_serve.protocol.limits import Limits
from fewshard_serve.protocol.tasks import TASKS
from fewshard_serve.protocol.tasks.text import text_input

MAX_WORDS = 256
"""Each word is one more text to classify."""


class ExplainRequest(BaseModel, extra="forbid", strict=True, frozen=True):
    """The body of `POST /v2/models/<m>/explain`."""

    inputs: str
    label: Annotated[str | None, Field(description="the label to explain; the best one where null")] = None


class Word(BaseModel):
    """`effect`: how far the label's margin falls without the word; below 0 where it speaks against it."""

    word: str
    start: int
    end: int
    effect: float


class ExplainResponse(BaseModel):
    """The words of the text in their order. A margin is the label's logit less the best other one."""

    model: str
    label: str
    score: float
    margin: float
    words: list[Word]
    usage: Usage
    timings_ms: TimingsMs


@dataclass(frozen=True, slots=True)
class ExplainQuery:
    """A request to explain an answer.

    spans: start and end of each word in the text.
    label: the index of the requested label; None for the best one.
    """

    text: str
    spans: tuple[tuple[int, int], ...]
    label: int | None

    @property
    def inputs(self) -> list[Input]:
        """The text, and the text without each word."""
        texts = [self.text, *(_without(self.text, *span) for span in self.spans)]
        return [TextInput(text) for text in texts]


def parse_explain(body: bytes, info: ModelInfo, limits: Limits) -> ExplainQuery:
    """Parse a body. Raises `MalformedRequest`, `TooLarge`; `UnsupportedMedia` if it is no text model."""
    TASKS.check_takes_texts(info, "only words of a text can be explained")
    request = parse_body(ExplainRequest, body, limits)
    text_input(0, request.inputs, None, limits)
    spans = tuple(match.span() for match in re.finditer(r"\S+", request.inputs))
    most = min(MAX_WORDS, limits.max_items - 1)
    if len(spans) > most:
        raise TooLarge(f"the text has {len(spans)} words, at most {most} are explained; send a part of it")
    return ExplainQuery(
        request.inputs, spans, None if request.label is None else _column(request.label, info)
    )


def encode_explain(question: ExplainQuery, info: ModelInfo, answer: Classified) -> bytes:
    """The JSON of an `ExplainResponse`."""
    logits = answer.logits
    label = int(logits[0].argmax()) if question.label is None else question.label
    margins = _margins(logits, label, info)
    return to_json(
        {
            "model": info.name,
            "label": info.labels[label],
            "score": float(activate(logits[:1], info.problem_type)[0, label]),
            "margin": float(margins[0]),
            "words": _words(question, margins),
            "usage": {"items": len(logits), "tokens": answer.num_tokens},
            "timings_ms": timings_ms(answer),
            **degraded(answer),
        }
    )


def _words(question: ExplainQuery, margins: NDArray[np.float32]) -> Sequence[dict[str, Any]]:
    effects = (margins[0] - margins[1:]).tolist()
    return [
        {"word": question.text[start:end], "start": start, "end": end, "effect": effect}
        for (start, end), effect in zip(question.spans, effects, strict=True)
    ]


def _margins(logits: NDArray[np.float32], label: int, info: ModelInfo) -> NDArray[np.float32]:
    """Margins [num_items]. With independent labels, the margin is the logit itself."""
    own: NDArray[np.float32] = logits[:, label]
    if info.problem_type != "single_label_classification" or logits.shape[1] == 1:
        return own
    others: NDArray[np.float32] = np.delete(logits, label, axis=1).max(axis=1)
    return np.subtract(own, others)


def _without(text: str, start: int, end: int) -> str:
    """The text without one word and the space after it."""
    return (text[:start] + text[end:].lstrip()).rstrip()


def _column(label: str, info: ModelInfo) -> int:
    if label not in info.labels:
        raise MalformedRequest(f"unknown label {label!r:.100}; {nearest(label, info.labels)}")
    if info.labels.count(label) > 1:
        raise MalformedRequest(
            f"label {label!r:.100} is the name of {info.labels.count(label)} outputs of this model; leave "
            "label out to explain the predicted one"
        )
    return info.labels.index(label)
