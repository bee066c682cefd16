"""The `/v1/classify` protocol of vLLM, for its clients; the gateway uses it."""

from typing import Annotated, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field
from pydantic_core import to_json

from fewshard_core.activation import activate
from fewshard_core.values import Input, ModelInfo
from fewshard_serve.core import Classified
from fewshard_serve.protocol.classify import parse_body
from fewshard_serve.protocol.inputs import check_num_items
from fewshard_serve.protocol.limits import Limits
from fewshard_serve.protocol.tasks import TASKS
from fewshard_serve.protocol.tasks.text import text_input


class VllmClassifyRequest(BaseModel):
    """The body of `POST /v1/classify`. Keys that are not listed are ignored, as there.

    Texts alone: token ids and chat messages mean nothing without the model's own tokenizer and template.
    """

    model_config = ConfigDict(extra="ignore", strict=True, frozen=True)

    model: Annotated[str | None, Field(description="needed where several models are served")] = None
    input: str | Annotated[list[str], Field(min_length=1)]
    use_activation: bool | None = None
    truncate_prompt_tokens: Annotated[
        Literal[-1] | None, Field(description="-1 cuts what is too long; else it is refused")
    ] = None
    truncation_side: Literal["right"] | None = None
    add_special_tokens: Literal[True] = True

    @property
    def texts(self) -> list[str]:
        return [self.input] if isinstance(self.input, str) else self.input


class ClassificationData(BaseModel):
    """One item: the best label, and every label's score in the order of the model's labels."""

    index: int
    label: str | None
    probs: list[float]
    num_classes: int


class VllmUsage(BaseModel):
    prompt_tokens: int
    total_tokens: int
    completion_tokens: int
    prompt_tokens_details: None = None


class VllmClassifyResponse(BaseModel):
    """The answer of `POST /v1/classify`; `created` is in seconds since 1970."""

    id: str
    object: Literal["list"]
    created: int
    model: str
    data: list[ClassificationData]
    usage: VllmUsage


class VllmErrorDetail(BaseModel):
    message: str
    type: str
    param: str | None
    code: int


class VllmErrorBody(BaseModel):
    """Every answer of `POST /v1/classify` but 200."""

    error: VllmErrorDetail


def parse(body: bytes, limits: Limits) -> VllmClassifyRequest:
    """Parse a body. Raises `MalformedRequest` or `TooLarge`."""
    return parse_body(VllmClassifyRequest, body, limits)


def to_inputs(request: VllmClassifyRequest, info: ModelInfo, limits: Limits) -> list[Input]:
    """The items of a request."""
    TASKS.check_takes_texts(info, f"POST them to /v2/models/{info.name}/classify")
    check_num_items(len(request.texts), limits)
    return [text_input(index, text, None, limits) for index, text in enumerate(request.texts)]


def encode(
    request: VllmClassifyRequest, info: ModelInfo, answer: Classified, *, request_id: str, created_s: int
) -> bytes:
    """The JSON of a `VllmClassifyResponse`."""
    wants_logits = request.use_activation is False
    scores = answer.logits if wants_logits else activate(answer.logits, info.problem_type)
    best = np.argmax(scores, axis=1).tolist()
    return to_json(
        {
            "id": f"classify-{request_id}",
            "object": "list",
            "created": created_s,
            "model": info.name,
            "data": [
                {"index": n, "label": info.labels[label], "probs": row, "num_classes": len(row)}
                for n, (label, row) in enumerate(zip(best, scores.tolist(), strict=True))
            ],
            "usage": {
                "prompt_tokens": answer.num_tokens,
                "total_tokens": answer.num_tokens,
                "completion_tokens": 0,
                "prompt_tokens_details": None,
            },
        }
    )


def error_body(message: str, code: str, status: int) -> bytes:
    """The JSON of a `VllmErrorBody`."""
    return to_json({"error": {"message": message, "type": code, "param": None, "code": status}})
