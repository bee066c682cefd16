"""The `/v1/classify` protocol of vLLM, for its clients; the gateway uses it."""

from typing import Annotated, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field
from pydantic_core import to_json

from fewshard_core.activation import activate
from fewshard_core.values import Input, ModelInfo
from fewshard_serve.core import Classified
from fewshard_serve.errors import MalformedRequest
from fewshard_serve.protocol.classify import parse_body
from fewshard_serve.protocol.inputs import check_num_items
from fewshard_serve.protocol.limits import Limits
from fewshard_serve.protocol.tasks import TASKS
from fewshard_serve.protocol.tasks.text import text_input

_Alias = Annotated[bool | None, Field(description="an older name of use_activation")]


class VllmClassifyRequest(BaseModel):
    """The body of `POST /v1/classify`.

    Texts alone: token ids and chat messages mean nothing without the model's own tokenizer and template. Of
    an option that is not offered, only the value that vLLM has by default is taken.
    """

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    model: Annotated[str | None, Field(description="needed where several models are served")] = None
    input: str | Annotated[list[str], Field(min_length=1)]
    use_activation: bool | None = None
    activation: _Alias = None
    softmax: _Alias = None
    truncate_prompt_tokens: Annotated[
        Literal[-1] | None, Field(description="-1 cuts what is too long; else it is refused")
    ] = None
    truncation_side: Literal["right"] | None = None
    padding: Annotated[
        Literal["do_not_pad"] | None, Field(description="no answer depends on padding here")
    ] = None
    add_special_tokens: Literal[True] | None = True
    encoding_format: Literal["float"] | None = "float"
    priority: Annotated[
        Literal[0] | None, Field(description="the header X-Request-Priority makes a request urgent")
    ] = 0
    request_id: Annotated[str | None, Field(max_length=128, description="becomes the answer's id")] = None
    user: Annotated[str | None, Field(description="without effect, as there")] = None
    cache_salt: Annotated[str | None, Field(description="without effect: nothing is cached")] = None
    mm_processor_kwargs: None = None

    @property
    def texts(self) -> list[str]:
        return [self.input] if isinstance(self.input, str) else self.input

    @property
    def wants_logits(self) -> bool:
        """Whether scores are not activated."""
        return False in (self.use_activation, self.activation, self.softmax)


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


class OpenAiModel(BaseModel):
    """One model as OpenAI's clients list it; `created` is in seconds since 1970."""

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: Literal["fewshard"] = "fewshard"


class OpenAiModels(BaseModel):
    """The answer of `GET /v1/models`."""

    object: Literal["list"] = "list"
    data: list[OpenAiModel]


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
    request = parse_body(VllmClassifyRequest, body, limits)
    if len({request.use_activation, request.activation, request.softmax} - {None}) > 1:
        raise MalformedRequest("use_activation and its older names contradict each other; send one")
    return request


def to_inputs(request: VllmClassifyRequest, info: ModelInfo, limits: Limits) -> list[Input]:
    """The items of a request."""
    TASKS.check_takes_texts(info, f"POST them to /v2/models/{info.name}/classify")
    check_num_items(len(request.texts), limits)
    return [text_input(index, text, None, limits) for index, text in enumerate(request.texts)]


def encode(
    request: VllmClassifyRequest, info: ModelInfo, answer: Classified, *, request_id: str, created_s: int
) -> bytes:
    """The JSON of a `VllmClassifyResponse`."""
    scores = answer.logits if request.wants_logits else activate(answer.logits, info.problem_type)
    best = np.argmax(scores, axis=1).tolist()
    return to_json(
        {
            "id": f"classify-{request.request_id or request_id}",
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
