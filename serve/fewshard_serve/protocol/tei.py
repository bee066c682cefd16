"""The `/predict` protocol of text-embeddings-inference, for its clients; both ASGI applications use it.

In this protocol, `["a", "b"]` is one pair, not two texts; `[["a"], ["b", "c"]]` is a text and a pair.
"""

from collections.abc import Sequence
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, RootModel
from pydantic_core import to_json

from fewshard_core.values import Input, ModelInfo
from fewshard_serve.core import Classified
from fewshard_serve.errors import MalformedRequest, NotReady, Overloaded, ServeError
from fewshard_serve.protocol.classify import LabelScore, parse_body, ranked_scores
from fewshard_serve.protocol.inputs import check_num_items
from fewshard_serve.protocol.limits import Limits
from fewshard_serve.protocol.tasks import TASKS
from fewshard_serve.protocol.tasks.text import text_input

Texts = Annotated[list[str], Field(min_length=1, max_length=2)]


class PredictRequest(BaseModel):
    """The body of `POST /predict`. Keys that are not listed are ignored, as there."""

    model_config = ConfigDict(extra="ignore", strict=True, frozen=True)

    inputs: Annotated[
        str | Texts | Annotated[list[Texts], Field(min_length=1)],
        Field(description="a text; [a text]; [a text, its pair]; or a list of the last two"),
    ]
    truncate: Annotated[bool | None, Field(description="cut texts that are too long; true where null")] = None
    truncation_direction: Literal["right", "Right"] = "right"
    raw_scores: bool = False
    model: Annotated[str | None, Field(description="needed where several models are served")] = None


class PredictResponse(RootModel[list[LabelScore] | list[list[LabelScore]]]):
    """One list for one text or pair, else a list for each."""


class PredictErrorBody(BaseModel):
    """Every answer of `POST /predict` but 200; `error_type` is that server's own word."""

    error: str
    error_type: Literal["Unhealthy", "Backend", "Overloaded", "Validation"]
    code: str


def parse(body: bytes, limits: Limits) -> PredictRequest:
    """Parse a body. Raises `MalformedRequest` or `TooLarge`."""
    return parse_body(PredictRequest, body, limits)


def is_batch(request: PredictRequest) -> bool:
    """Whether the answer is a list of lists."""
    return not isinstance(request.inputs, str) and isinstance(request.inputs[0], list)


def to_inputs(request: PredictRequest, info: ModelInfo, limits: Limits) -> list[Input]:
    """The items of a request."""
    TASKS.check_takes_texts(info, f"POST them to /v2/models/{info.name}/classify")
    items = _items(request)
    check_num_items(len(items), limits)
    return [text_input(n, item[0], item[1] if item[1:] else None, limits) for n, item in enumerate(items)]


def encode(request: PredictRequest, info: ModelInfo, answer: Classified) -> bytes:
    """All labels of each item, the best first."""
    ranked = ranked_scores(answer.logits, info, request.raw_scores)
    return to_json(ranked if is_batch(request) else ranked[0])


def headers(answer: Classified, num_characters: int, total_s: float, device: str) -> dict[str, str]:
    """The response headers that this protocol adds. Their times are in milliseconds."""
    times = answer.timings
    compute_s = times.preprocess_s + times.queue_s + times.infer_s
    seconds = {
        "compute": compute_s,
        "total": total_s,
        "tokenization": times.preprocess_s,
        "queue": times.queue_s,
        "inference": times.infer_s,
    }
    return {
        "x-compute-type": "cpu" if device == "cpu" else "gpu",
        "x-compute-characters": str(num_characters),
        "x-compute-tokens": str(answer.num_tokens),
        **{f"x-{name}-time": str(round(spent * 1000)) for name, spent in seconds.items()},
    }


def num_characters(request: PredictRequest) -> int:
    """The number of characters in all texts."""
    return sum(len(text) for item in _items(request) for text in item)


def error_type(error: ServeError) -> str:
    """The `error_type` of this protocol for an error."""
    kinds = {Overloaded: "Overloaded", NotReady: "Unhealthy"}
    by_kind = next((word for kind, word in kinds.items() if isinstance(error, kind)), None)
    return by_kind or (
        "Validation" if isinstance(error, MalformedRequest) else _BY_CODE.get(error.code, "Backend")
    )


_BY_CODE = dict.fromkeys(("too_large", "unusable_item", "unsupported_media", "unknown_model"), "Validation")


def _items(request: PredictRequest) -> Sequence[Sequence[str]]:
    if isinstance(request.inputs, str):
        return [[request.inputs]]
    first = request.inputs[0]
    return [request.inputs] if isinstance(first, str) else request.inputs  # type: ignore[list-item]
