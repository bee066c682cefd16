"""The messages of both clients: inputs and their JSON, requests, typed answers and `ClientError`.

It uses no network; `client.client` sends the requests.
"""

import base64
import mimetypes
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import singledispatch
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import quote

import httpx

from fewshard_serve.errors import ServeError


class ClientError(ServeError):
    """The server did not answer, or refused. The message is the server's own if it sent one.

    status: the HTTP status; None if no answer came.
    server_code: the server's stable error code; "" if it sent none.
    """

    code = "client"

    def __init__(self, message: str, status: int | None = None, server_code: str = "") -> None:
        super().__init__(message)
        self.status = status
        self.server_code = server_code


UNKNOWN_TYPE = "application/octet-stream"


@dataclass(frozen=True, slots=True)
class TextPair:
    """One item that consists of two texts, as in entailment."""

    text: str
    text_pair: str


@dataclass(frozen=True, slots=True)
class Image:
    """The bytes of an image file, and its media type."""

    data: bytes
    media_type: str = UNKNOWN_TYPE


Input = str | TextPair | Image | Path
"""A text, a pair of texts, or an image as its bytes or as the path of its file."""


def as_json(inputs: Input | Sequence[Input]) -> list[Any]:
    """One entry per input. Raises `ClientError` for an unreadable file and for any other type."""
    is_one = item_json.dispatch(type(inputs)) is not item_json.dispatch(object)
    given: Any = [inputs] if is_one else inputs
    return [item_json(each) for each in given]


@singledispatch
def item_json(given: object) -> Any:
    """The JSON of one item. `item_json.register` adds a class for the items of another task."""
    advice = "give a text, a TextPair, the Path of an image file, or an Image of such a file's bytes"
    raise ClientError(f"a {type(given).__name__} cannot be classified: {advice}")


@item_json.register
def _(text: str) -> str:
    return text


@item_json.register
def _(pair: TextPair) -> dict[str, str]:
    return {"text": pair.text, "text_pair": pair.text_pair}


@item_json.register
def _(image: Image) -> str:
    return f"data:{image.media_type};base64,{base64.b64encode(image.data).decode('ascii')}"


@item_json.register
def _(path: Path) -> Any:
    return item_json(_read_image(path))


def _read_image(path: Path) -> Image:
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ClientError(f"the image {path} cannot be read: {error.strerror}") from None
    return Image(data, mimetypes.guess_type(path.name)[0] or UNKNOWN_TYPE)


@dataclass(frozen=True, slots=True)
class LabelScore:
    """One label and its score."""

    label: str
    score: float


@dataclass(frozen=True, slots=True)
class Entity:
    """A part of a text with its label, by a model that labels tokens. Its place is in characters."""

    label: str
    score: float
    text: str
    start: int
    end: int


@dataclass(frozen=True, slots=True)
class Prediction:
    """The prediction of one item.

    labels: the best first.
    stage: for a cascade, the name of the model that answered.
    assigned: for a model with thresholds, the labels that reach theirs; None for any other.
    entities: for a model that labels tokens, what the text holds, in its order. `labels` is then empty.
    """

    labels: tuple[LabelScore, ...]
    stage: str | None = None
    assigned: tuple[str, ...] | None = None
    entities: tuple[Entity, ...] = ()

    @property
    def label(self) -> str:
        return self.labels[0].label

    @property
    def score(self) -> float:
        return self.labels[0].score


@dataclass(frozen=True, slots=True)
class Classification:
    """The answer to one request.

    predictions: one per input, in input order.
    timings_ms: milliseconds in each stage.
    raw: the server's JSON.
    """

    model: str
    predictions: tuple[Prediction, ...]
    num_tokens: int
    timings_ms: dict[str, float]
    raw: dict[str, Any]


def classification(answer: dict[str, Any], num_inputs: int) -> Classification:
    """Read the JSON of an answer. Raises `ClientError` if it is not an answer to `num_inputs` inputs."""
    try:
        nothing = [None] * num_inputs
        stages, assigned = answer.get("stages") or nothing, answer.get("assigned") or nothing
        items = zip(answer["predictions"], stages, assigned, strict=True)
        predictions = tuple(_prediction(each, stage, own) for each, stage, own in items)
        if len(predictions) != num_inputs:
            raise ValueError(f"{len(predictions)} predictions for {num_inputs} inputs")
        tokens, timings = answer["usage"]["tokens"], answer.get("timings_ms", {})
        return Classification(answer["model"], predictions, tokens, timings, answer)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ClientError(f"the answer is not one of a Fewshard server: {error!r}") from None


def _prediction(entries: list[dict[str, Any]], stage: str | None, assigned: list[str] | None) -> Prediction:
    own = None if assigned is None else tuple(assigned)
    if entries and "start" in entries[0]:
        entities = [
            Entity(each["label"], float(each["score"]), each["text"], each["start"], each["end"])
            for each in entries
        ]
        return Prediction((), stage, own, tuple(entities))
    return Prediction(tuple(map(_label_score, entries)), stage, own)


@dataclass(frozen=True, slots=True)
class Ranked:
    """One document in the order of a reranking.

    index: its place among the documents of the request.
    """

    index: int
    score: float


def ranking(answer: dict[str, Any]) -> tuple[Ranked, ...]:
    """Read the JSON of a reranking, the best first. Raises `ClientError` if it is none."""
    try:
        return tuple(Ranked(each["index"], float(each["relevance_score"])) for each in answer["results"])
    except (KeyError, TypeError, ValueError) as error:
        raise ClientError(f"the answer is not one of a Fewshard server: {error!r}") from None


def pair_scores(answer: dict[str, Any]) -> list[float]:
    """Read the JSON of scores, in the order of the pairs. Raises `ClientError` if it is none."""
    try:
        return [float(each["score"]) for each in answer["data"]]
    except (KeyError, TypeError, ValueError) as error:
        raise ClientError(f"the answer is not one of a Fewshard server: {error!r}") from None


def _label_score(entry: dict[str, Any]) -> LabelScore:
    return LabelScore(entry["label"], float(entry["score"]))


DEFAULT_URL = "http://127.0.0.1:8000"
DEFAULT_TIMEOUT_S = 60.0
TOKEN_VARIABLE = "FEWSHARD_TOKEN"

ItemT = TypeVar("ItemT")


@dataclass(frozen=True, slots=True)
class Call:
    """One request of the API."""

    method: str
    path: str
    body: Any = None
    headers: dict[str, str] = field(default_factory=dict)

    def with_deadline(self, timeout_s: float) -> dict[str, str]:
        """The headers with the deadline, so that the server does not start work that would be too late."""
        return {**self.headers, "X-Request-Timeout-Ms": str(max(1, round(timeout_s * 1000)))}


def classify_call(
    model: str,
    inputs: Input | Sequence[Input],
    *,
    top_k: int | None = None,
    raw_scores: bool = False,
    truncate: bool = True,
    aggregation: str | None = None,
    ignore_labels: Sequence[str] | None = None,
    priority: str | None = None,
    request_id: str | None = None,
) -> Call:
    """`POST /v2/models/<model>/classify`."""
    ignored = None if ignore_labels is None else list(ignore_labels)
    tokens = {"aggregation": aggregation, "ignore_labels": ignored}
    options: dict[str, Any] = {"top_k": top_k, "raw_scores": raw_scores, "truncate": truncate, **tokens}
    usual = {"raw_scores": False, "truncate": True}
    asked = {key: value for key, value in options.items() if value != usual.get(key)}
    given = {"X-Request-Priority": priority, "X-Request-Id": request_id}
    headers = {name: value for name, value in given.items() if value is not None}
    return Call("POST", f"{_model_path(model)}/classify", {"inputs": as_json(inputs), **asked}, headers)


def rerank_call(
    model: str,
    query: str,
    documents: Sequence[str],
    *,
    top_n: int | None = None,
    raw_scores: bool = False,
    truncate: bool = True,
) -> Call:
    """`POST /v2/models/<model>/rerank`."""
    body = {"query": query, "documents": list(documents), "top_n": top_n, "return_documents": False}
    options = {"raw_scores": raw_scores, "truncate": truncate}
    return Call("POST", f"{_model_path(model)}/rerank", {**body, **options})


def score_call(
    model: str, pairs: Sequence[TextPair], *, raw_scores: bool = False, truncate: bool = True
) -> Call:
    """`POST /v2/models/<model>/score`."""
    texts = {"text_1": [each.text for each in pairs], "text_2": [each.text_pair for each in pairs]}
    options = {"raw_scores": raw_scores, "truncate": truncate}
    return Call("POST", f"{_model_path(model)}/score", {**texts, **options})


def config_call(model: str) -> Call:
    return Call("GET", f"{_model_path(model)}/config")


def place_call(model: str, placement: dict[str, Any]) -> Call:
    return Call("POST", f"{_model_path(model)}/placement", placement)


INDEX_CALL = Call("POST", "/v2/repository/index", {})


def default_headers(token: str | None) -> dict[str, str]:
    """The headers with the token, by default from the environment. No error message shows the token."""
    token = token or os.environ.get(TOKEN_VARIABLE)
    return {"Authorization": f"Bearer {token}"} if token else {}


def read_object(url: str, response: httpx.Response) -> dict[str, Any]:
    """The JSON object of a successful answer. Raises `ClientError` for any other answer."""
    answer = _read(url, response)
    if not isinstance(answer, dict):
        raise ClientError(f"{url} answered with something that is not a JSON object")
    return answer


def read_index(url: str, response: httpx.Response) -> list[dict[str, Any]]:
    """The repository index of a successful answer. Raises `ClientError` for any other answer."""
    answer = _read(url, response)
    if not isinstance(answer, list):
        raise ClientError(f"{url} is not a Fewshard server: its repository index is no list")
    return answer


def batched(inputs: Iterable[ItemT], size: int) -> Iterator[list[ItemT]]:
    """Yield lists of `size` inputs; the last may be shorter."""
    if size < 1:
        raise ValueError(f"a batch of {size} inputs cannot be sent; batch_size must be at least 1")
    left = iter(inputs)
    while batch := list(islice(left, size)):
        yield batch


def _model_path(model: str) -> str:
    return f"/v2/models/{quote(model, safe='')}"


def _read(url: str, response: httpx.Response) -> Any:
    status = response.status_code
    try:
        answer = response.json()
    except ValueError:
        raise ClientError(
            f"{url} answered {status} without JSON; is this a Fewshard server?", status
        ) from None
    if response.is_success:
        return answer
    given = answer if isinstance(answer, dict) else {}
    message = f"{url} answered {status}: {given.get('error') or answer}"
    raise ClientError(message, status, str(given.get("code", "")))
