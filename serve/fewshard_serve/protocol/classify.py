"""The classify protocol: a request such as `{"inputs": "a text"}` is answered by labels sorted by score.

Both ASGI applications use it. The pydantic models are also the source of the OpenAPI document.
"""

from collections.abc import Sequence
from functools import reduce
from operator import or_
from typing import Annotated, Any, TypeVar, get_args

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, GetCoreSchemaHandler, ValidationError
from pydantic_core import CoreSchema, ErrorDetails, to_json

from fewshard_core.activation import activate, assigned
from fewshard_core.values import Input, ModelInfo
from fewshard_models.classifier.entities import Aggregation
from fewshard_serve.core import Classified
from fewshard_serve.errors import MalformedRequest, UnsupportedMedia
from fewshard_serve.protocol.inputs import check_num_items
from fewshard_serve.protocol.json_guard import check_structure, nearest, quoted
from fewshard_serve.protocol.limits import Limits
from fewshard_serve.protocol.options import AnswerOptions
from fewshard_serve.protocol.tasks import TASKS, Task

MAX_ROUTED_ITEMS = 8
"""Routing is many numbers per token, and meant for people to look at."""


class _Body(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class _AnyTask:
    """The type of `inputs`: an item of any task in `TASKS`, or a list of such items."""

    @classmethod
    def __get_pydantic_core_schema__(cls, _: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        item: Any = reduce(or_, (kind for task in TASKS for kind in task.json_types))
        return handler.generate_schema(item | Annotated[list[item], Field(fail_fast=True)])


class ClassifyOptions(_Body):
    """How to answer; the query of a request whose body is an image carries the first two."""

    top_k: Annotated[int | None, Field(ge=1, description="only the best so many labels; all where null")] = (
        None
    )
    raw_scores: Annotated[bool | None, Field(description="logits in place of activated scores")] = False
    truncate: Annotated[bool | None, Field(description="cut texts that are too long; true where null")] = True
    aggregation: Annotated[
        Aggregation | None,
        Field(description="of a model that labels tokens: how they are joined; null: simple"),
    ] = None
    ignore_labels: Annotated[
        list[str] | None, Field(description="of such a model: what is left out of the answer; null: O")
    ] = None

    @property
    def wished(self) -> AnswerOptions:
        return AnswerOptions(self.top_k, self.raw_scores, self.aggregation, self.ignore_labels)


class ClassifyRequest(ClassifyOptions):
    """The body of `POST /v2/models/<m>/classify`. Images are base64 strings or data URLs."""

    inputs: Annotated[Any, _AnyTask]
    routing: Annotated[
        bool | None,
        Field(
            description="tell which experts each token went to, where the model can: an unsharded mixture of "
            f"experts over text; for at most {MAX_ROUTED_ITEMS} items a request"
        ),
    ] = False


class GatewayClassifyRequest(ClassifyRequest):
    """The body of `POST /classify`."""

    model: Annotated[str | None, Field(description="needed where several models are served")] = None


def _rebuild() -> None:
    """Rebuild the request bodies after a task was registered or unregistered."""
    for body in (ClassifyRequest, GatewayClassifyRequest):
        body.model_rebuild(force=True)


TASKS.follow(_rebuild)


class LabelScore(BaseModel):
    """A label of an item, or of a part of a text where a model labels tokens."""

    label: str
    score: float
    text: Annotated[str | None, Field(description="that part")] = None
    start: Annotated[int | None, Field(description="its place in the text, in characters")] = None
    end: int | None = None


class Usage(BaseModel):
    items: int
    tokens: int


class TimingsMs(BaseModel):
    """Milliseconds in each stage, the longest of the request's items."""

    queue: float
    preprocess: float
    infer: float


class RoutingOfItem(BaseModel):
    """The experts that the tokens of one item went to."""

    tokens: Annotated[list[str], Field(description="as the tokenizer spells them")]
    experts: Annotated[
        list[list[list[int]]],
        Field(description="by layer with experts, token and choice, the router's first choice first"),
    ]


class ClassifyResponse(BaseModel):
    """One list of labels for each item, in their order, best first."""

    model: str
    predictions: list[list[LabelScore]]
    assigned: Annotated[
        list[list[str]] | None,
        Field(
            description="there where the model has `thresholds`: the labels of each item that reach theirs"
        ),
    ] = None
    scores: Annotated[
        list[float] | None,
        Field(description="there where a model gives a score, no label, as a regression or reward model"),
    ] = None
    usage: Usage
    timings_ms: TimingsMs
    stages: Annotated[
        list[str] | None, Field(description="of a cascade: the model that spoke for each item")
    ] = None
    degraded: Annotated[bool, Field(description="true, and there, where some experts were missing")] = False
    routing: Annotated[
        list[RoutingOfItem] | None, Field(description="there where it was asked for and the model can tell")
    ] = None


RequestT = TypeVar("RequestT", bound=BaseModel)


def parse_classify(body: bytes, limits: Limits) -> ClassifyRequest:
    """Parse a body. Raises `MalformedRequest`, which suggests a name for an unknown key, or `TooLarge`."""
    return parse_body(ClassifyRequest, body, limits)


def parse_gateway_classify(body: bytes, limits: Limits) -> GatewayClassifyRequest:
    """Parse a body that also names the model. Raises as `parse_classify` does."""
    return parse_body(GatewayClassifyRequest, body, limits)


def to_inputs(request: ClassifyRequest, info: ModelInfo, limits: Limits) -> list[Input]:
    """The items of a request. Raises `UnusableItem` for a bad item, `TooLarge` above a limit."""
    task = TASKS.of(info)
    items = task.json_items(request.inputs)
    check_num_items(len(items), limits)
    if request.routing and len(items) > MAX_ROUTED_ITEMS:
        raise MalformedRequest(f"routing is told for at most {MAX_ROUTED_ITEMS} items a request; send fewer")
    inputs = [_json_item(task, index, item, limits) for index, item in enumerate(items)]
    return task.with_routing(inputs) if request.routing else inputs


def file_inputs(body: bytes, sent: Task, info: ModelInfo, limits: Limits) -> list[Input]:
    """The item of a request whose body is a file. `sent`: the task of the body's media type."""
    task = TASKS.of(info)
    if task is not sent:
        raise UnsupportedMedia(f"{info.name} {task.body_refusal}")
    return [task.from_bytes(body, limits)]


def encode_classify(options: ClassifyOptions, info: ModelInfo, answer: Classified) -> bytes:
    """The JSON of a `ClassifyResponse`."""
    return to_json(
        {
            "model": info.name,
            "predictions": TASKS.of(info).predictions(info, answer, options.wished),
            **_verdicts(info, answer),
            "usage": {"items": len(answer.logits), "tokens": answer.num_tokens},
            "timings_ms": timings_ms(answer),
            **({"stages": answer.stages} if answer.stages else {}),
            **degraded(answer),
            **({"routing": answer.routing} if answer.routing else {}),
        }
    )


def assigned_labels(logits: NDArray[np.float32], info: ModelInfo) -> list[list[str]]:
    """The labels of each item that reach their thresholds, in the order of the model's labels."""
    rows = assigned(activate(logits, info.problem_type), info)
    return [[label for label, has in zip(info.labels, row, strict=True) if has] for row in rows.tolist()]


def _verdicts(info: ModelInfo, answer: Classified) -> dict[str, Any]:
    """What an answer says beside its ranked labels: those above their thresholds, or plain scores."""
    if info.thresholds:
        return {"assigned": assigned_labels(answer.logits, info)}
    return {"scores": answer.logits[:, 0].tolist()} if info.is_score else {}


def degraded(answer: Classified) -> dict[str, bool]:
    """The key `degraded`, which only answers computed without some experts have."""
    return {"degraded": True} if answer.is_degraded else {}


def timings_ms(answer: Classified) -> dict[str, float]:
    """Milliseconds, rounded to microseconds, in the order of `TimingsMs`."""
    timings = answer.timings
    stages = {"queue": timings.queue_s, "preprocess": timings.preprocess_s, "infer": timings.infer_s}
    return {stage: round(seconds * 1000, 3) for stage, seconds in stages.items()}


def _json_item(task: Task, index: int, item: Any, limits: Limits) -> Input:
    if not task.takes_json(item):
        raise MalformedRequest(f"item {index}: {task.json_refusal}")
    return task.from_json(index, item, limits)


def parse_body(kind: type[RequestT], body: bytes, limits: Limits) -> RequestT:
    """Parse a JSON body as a `kind`. Raises `MalformedRequest`; `TooLarge` for a hostile body."""
    max_values = limits.max_items * max(task.values_per_item for task in TASKS)
    check_structure(body, limits.max_json_depth, max_values)
    try:
        return kind.model_validate_json(body)
    except ValidationError as error:
        raise MalformedRequest(explain(error, kind)) from None


def explain(error: ValidationError, kind: type[BaseModel]) -> str:
    """A message that says what is wrong with a body or query of class `kind`, and what to do."""
    mistakes = error.errors(include_url=False, include_input=False)
    unknown = next((each for each in mistakes if each["type"] == "extra_forbidden"), None)
    if unknown is not None:
        return _explain_unknown_key(unknown["loc"], kind)
    first = mistakes[0]
    if first["type"] == "json_invalid":
        return f"the body is not JSON: {first['msg'].removeprefix('Invalid JSON: ')}; send UTF-8 JSON"
    if not first["loc"]:
        return f"the body must be a JSON object; {_inputs_help()}"
    if first["loc"] != ("inputs",) and first["loc"][0] == "inputs":
        return _explain_inputs(mistakes)
    if first["type"] == "missing":
        return f"the key {quoted(first['loc'][0])} is missing; add it"
    key = ".".join(map(str, first["loc"][: 2 if first["loc"][0] == "parameters" else 1]))
    return f"the key {quoted(key)} {first['msg'].removeprefix('Input ')}"


def _explain_unknown_key(where: tuple[int | str, ...], kind: type[BaseModel]) -> str:
    items = [each for task in TASKS for each in task.json_types if hasattr(each, "model_fields")]
    within = {each.__name__: each for each in items} | _sections(kind)
    owner = next((within[part] for part in where[:-1] if part in within), kind)
    advice = _ELSEWHERE.get(str(where[-1]), "")
    return f"unknown key {quoted(where[-1])}; {nearest(str(where[-1]), owner.model_fields)}{advice}"


_ELSEWHERE = {"input": "; clients of vLLM ask POST /v1/classify", "instances": "; send `inputs`"}
"""Advice on keys of other servers' protocols."""


def _sections(kind: type[BaseModel]) -> dict[Any, type[BaseModel]]:
    """The models that are the values of a model's keys, such as `parameters`."""
    found = {}
    for key, field in kind.model_fields.items():
        for each in get_args(field.annotation):
            if isinstance(each, type) and issubclass(each, BaseModel):
                found[key] = each
    return found


def _explain_inputs(mistakes: Sequence[ErrorDetails]) -> str:
    """A union fails once for each of its members. The failure of the list has the item's index."""
    indexes = [part for each in mistakes for part in each["loc"] if isinstance(part, int)]
    where = f"item {indexes[0]} cannot be read: " if indexes else ""
    return f"{where}{_inputs_help()}"


def _inputs_help() -> str:
    return "; ".join(task.json_help for task in TASKS if task.json_help)
