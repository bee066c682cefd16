"""The `/predict` protocol of text-embeddings-inference, for its clients; both ASGI applications use it.

In this protocol, `["a", "b"]` is one pair, not two texts; `[["a"], ["b", "c"]]` is a text and a pair. Clients
of Hugging Face's pipelines send `parameters` too, even empty ones; `pipeline` has what else they expect.
"""

from collections.abc import Callable, Sequence
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, RootModel
from pydantic_core import to_json

from fewshard_core.activation import Floats, activate, sigmoid, softmax
from fewshard_core.values import Input, ModelInfo
from fewshard_models.classifier.entities import Aggregation
from fewshard_serve import __version__
from fewshard_serve.core import Classified
from fewshard_serve.errors import MalformedRequest, NotReady, Overloaded, ServeError
from fewshard_serve.protocol.classify import LabelScore, parse_body
from fewshard_serve.protocol.inputs import check_num_items
from fewshard_serve.protocol.limits import Limits
from fewshard_serve.protocol.options import AnswerOptions
from fewshard_serve.protocol.ranking import rank
from fewshard_serve.protocol.tasks import TASKS
from fewshard_serve.protocol.tasks.text import text_input

Texts = Annotated[list[str], Field(min_length=1, max_length=2)]


class PipelineParameters(BaseModel):
    """The options of a pipeline of Hugging Face."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    top_k: Annotated[int | None, Field(ge=1, description="only the best so many labels")] = None
    function_to_apply: Annotated[
        Literal["sigmoid", "softmax", "none"] | None, Field(description="the model's own where null")
    ] = None
    truncation: Annotated[bool | None, Field(description="cut texts that are too long; true where null")] = (
        None
    )
    aggregation_strategy: Annotated[
        Aggregation | None,
        Field(description="of a model that labels tokens: how they are joined; null: simple"),
    ] = None
    ignore_labels: Annotated[
        list[str] | None, Field(description="of such a model: what is left out of the answer; null: O")
    ] = None


class PredictRequest(BaseModel):
    """The body of `POST /predict`."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    inputs: Annotated[
        str | Texts | Annotated[list[Texts], Field(min_length=1)],
        Field(description="a text; [a text]; [a text, its pair]; or a list of the last two"),
    ]
    truncate: Annotated[bool | None, Field(description="cut texts that are too long; true where null")] = None
    truncation_direction: Annotated[
        Literal["right", "Right"] | None, Field(description="texts are cut at their end alone")
    ] = None
    raw_scores: bool | None = False
    model: Annotated[str | None, Field(description="needed where several models are served")] = None
    parameters: Annotated[
        PipelineParameters | None, Field(description="one text is then answered as a list of one list")
    ] = None

    @property
    def wished(self) -> AnswerOptions:
        """How tokens are joined; the other options are `scores`' and `encode`'s."""
        given = self.parameters or PipelineParameters()
        return AnswerOptions(
            top_k=given.top_k,
            raw_scores=self.raw_scores,
            aggregation=given.aggregation_strategy,
            ignore_labels=given.ignore_labels,
        )

    @property
    def cuts(self) -> bool:
        """Whether texts that are too long are cut."""
        options = (self.truncate, self.parameters and self.parameters.truncation)
        return False not in options


class PredictResponse(RootModel[list[LabelScore] | list[list[LabelScore]]]):
    """One list for one text or pair, else a list for each. With `parameters` always a list for each."""


class PredictErrorBody(BaseModel):
    """Every answer of `POST /predict` but 200; `error_type` is that server's own word."""

    error: str
    error_type: Literal["Unhealthy", "Backend", "Overloaded", "Validation"]
    code: str


class ClassifierLabels(BaseModel):
    id2label: dict[str, str]
    label2id: dict[str, int]


class ModelType(BaseModel):
    classifier: ClassifierLabels


class ModelInfoBody(BaseModel):
    """The answer of `GET /info`."""

    model_id: str
    model_sha: None = None
    model_dtype: str
    model_type: ModelType
    max_input_length: Annotated[int | None, Field(description="tokens; null for images")]
    max_client_batch_size: int
    auto_truncate: Literal[True] = True
    version: str


_DTYPES = {"fp32": "float32", "fp16": "float16", "bf16": "bfloat16"}


def model_info(info: ModelInfo, limits: Limits) -> ModelInfoBody:
    """The description of one model."""
    labels = ClassifierLabels(
        id2label={str(index): label for index, label in enumerate(info.labels)},
        label2id={label: index for index, label in enumerate(info.labels)},
    )
    return ModelInfoBody(
        model_id=info.name,
        model_dtype=_DTYPES.get(info.dtype, info.dtype),
        model_type=ModelType(classifier=labels),
        max_input_length=info.max_tokens or None,
        max_client_batch_size=limits.max_items,
        version=__version__,
    )


def parse(body: bytes, limits: Limits) -> PredictRequest:
    """Parse a body. Raises `MalformedRequest` or `TooLarge`."""
    request = parse_body(PredictRequest, body, limits)
    if request.parameters is not None:
        _check_parameters(request, request.parameters)
    return request


def is_flat(request: PredictRequest) -> bool:
    """Whether `inputs` is a list of texts: one pair here, several texts in Hugging Face's pipelines."""
    return not isinstance(request.inputs, str) and isinstance(request.inputs[0], str)


def refuse_flat(request: PredictRequest) -> None:
    """Raise `MalformedRequest` for a list of texts, which two kinds of clients mean differently."""
    if is_flat(request):
        raise MalformedRequest(
            "a list of texts may mean one pair or several texts here; send one text, or a list for each: "
            '[["a text"], ["a text", "its pair"]]'
        )


def _check_parameters(request: PredictRequest, parameters: PipelineParameters) -> None:
    refuse_flat(request)
    if request.raw_scores and parameters.function_to_apply not in (None, "none"):
        raise MalformedRequest("raw_scores and function_to_apply contradict each other; send one")


def to_inputs(request: PredictRequest, info: ModelInfo, limits: Limits) -> list[Input]:
    """The items of a request."""
    TASKS.check_takes_texts(info, f"POST them to /v2/models/{info.name}/classify")
    TASKS.of(info).check_options(request.wished)
    items = _items(request)
    check_num_items(len(items), limits)
    return [text_input(n, item[0], item[1] if item[1:] else None, limits) for n, item in enumerate(items)]


def encode(request: PredictRequest, info: ModelInfo, answer: Classified) -> bytes:
    """The labels of each item, the best first."""
    given = request.parameters
    ranked = rank(scores(request, info, answer.logits), info.labels, given.top_k if given else None)
    is_single = isinstance(request.inputs, str) or is_flat(request)
    return to_json(ranked[0] if is_single and given is None else ranked)


def scores(request: PredictRequest, info: ModelInfo, logits: Floats) -> Floats:
    """The scores [N, C] that a request asks for."""
    applied = "none" if request.raw_scores else request.parameters and request.parameters.function_to_apply
    return _APPLY[applied](logits) if applied else activate(logits, info.problem_type)


_APPLY: dict[str, Callable[[Floats], Floats]] = {
    "none": lambda logits: logits,
    "sigmoid": sigmoid,
    "softmax": softmax,
}


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
