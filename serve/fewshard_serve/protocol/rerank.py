"""Reranking and scoring of pairs by a cross-encoder, in the shapes that clients know; for HTTP.

A query with `texts` is text-embeddings-inference's `/rerank`. With `documents` it is that of Jina, Cohere,
Infinity and vLLM, who differ in whether the documents come back. `/score` is vLLM's.
"""

from typing import Annotated, Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, RootModel
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

_Texts = str | Annotated[list[str], Field(min_length=1)]


class _PairRequest(BaseModel):
    """The options that both kinds of requests have. Of vLLM's, only what it does by default is taken."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    model: Annotated[str | None, Field(description="needed where several models are served")] = None
    raw_scores: Annotated[bool | None, Field(description="logits in place of activated scores")] = False
    truncate: Annotated[bool | None, Field(description="cut pairs that are too long; true where null")] = None
    truncation_direction: Annotated[
        Literal["right", "Right"] | None, Field(description="texts are cut at their end alone")
    ] = None
    use_activation: Annotated[bool | None, Field(description="false: as raw_scores")] = None
    truncate_prompt_tokens: Annotated[Literal[-1] | None, Field(description="-1: as truncate")] = None
    priority: Annotated[
        Literal[0] | None, Field(description="the header X-Request-Priority makes a request urgent")
    ] = None
    request_id: Annotated[str | None, Field(max_length=128, description="becomes the answer's id")] = None
    user: Annotated[str | None, Field(description="without effect, as in vLLM")] = None

    @property
    def wants_logits(self) -> bool:
        """Whether scores are not activated."""
        return bool(self.raw_scores) or self.use_activation is False

    def scores(self, info: ModelInfo, logits: NDArray[np.float32]) -> NDArray[np.float32]:
        """The scores [N] that the request asks for, of logits [N, 1]."""
        activated = logits if self.wants_logits else activate(logits, info.problem_type)
        return activated[:, 0]


class RerankDocument(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    text: str


class RerankRequest(_PairRequest):
    """The body of `POST /rerank`: a query with `documents`, or with `texts` for text-embeddings-inference."""

    query: str
    documents: Annotated[
        list[str | RerankDocument] | None, Field(description="answered as Jina and Cohere do")
    ] = None
    texts: Annotated[list[str] | None, Field(description="answered as text-embeddings-inference does")] = None
    top_n: Annotated[int | None, Field(ge=0, description="only the best so many; all where null or 0")] = None
    return_documents: Annotated[
        bool | None, Field(description="null: as the API of the path does, /v2/rerank without them")
    ] = None
    return_text: Annotated[bool | None, Field(description="the same for `texts`; false where null")] = False

    @property
    def candidates(self) -> list[str]:
        """The texts to rank."""
        given: list[Any] = self.texts if self.documents is None else self.documents  # type: ignore[assignment]
        return [each if isinstance(each, str) else each.text for each in given]


class ScoreRequest(_PairRequest):
    """The body of `POST /score`: one text for all of `text_2`, or as many."""

    text_1: _Texts | None = None
    text_2: _Texts | None = None
    queries: Annotated[_Texts | None, Field(description="another name of text_1")] = None
    documents: Annotated[_Texts | None, Field(description="another name of text_2")] = None
    encoding_format: Literal["float"] | None = "float"

    @property
    def pairs(self) -> list[tuple[str, str]]:
        """The pairs in order. Raises `MalformedRequest` if their numbers do not fit."""
        firsts = _listed(self.queries if self.text_1 is None else self.text_1)
        seconds = _listed(self.documents if self.text_2 is None else self.text_2)
        if len(firsts) == 1:
            firsts *= len(seconds)
        if len(firsts) != len(seconds):
            raise MalformedRequest(
                f"text_1 has {len(firsts)} texts, text_2 has {len(seconds)}; send one text_1, or as many"
            )
        return list(zip(firsts, seconds, strict=True))


class TeiRerankResult(BaseModel):
    index: int
    score: float
    text: Annotated[str | None, Field(description="there where return_text is true")] = None


class RerankResult(BaseModel):
    index: int
    relevance_score: float
    document: Annotated[
        RerankDocument | None, Field(description="there unless return_documents is false")
    ] = None


class PairUsage(BaseModel):
    prompt_tokens: int
    total_tokens: int


class Reranking(BaseModel):
    """The documents, the best first."""

    id: str
    object: Literal["list"] = "list"
    model: str
    results: list[RerankResult]
    usage: PairUsage


class RerankResponse(RootModel[Reranking | list[TeiRerankResult]]):
    """An object for `documents`, a list for `texts`, both the best first."""


class ScoreData(BaseModel):
    index: int
    object: Literal["score"] = "score"
    score: float


class ScoreResponse(BaseModel):
    """One score a pair, in their order; `created` is in seconds since 1970."""

    id: str
    object: Literal["list"] = "list"
    created: int
    model: str
    data: list[ScoreData]
    usage: PairUsage


def parse_rerank(body: bytes, limits: Limits) -> RerankRequest:
    """Parse a body. Raises `MalformedRequest` or `TooLarge`."""
    request = parse_body(RerankRequest, body, limits)
    if (request.documents is None) == (request.texts is None):
        raise MalformedRequest("send the texts to rank as `documents`, or as `texts`, not both")
    return request


def parse_score(body: bytes, limits: Limits) -> ScoreRequest:
    """Parse a body. Raises `MalformedRequest` or `TooLarge`."""
    request = parse_body(ScoreRequest, body, limits)
    for one, other in (("text_1", "queries"), ("text_2", "documents")):
        if (getattr(request, one) is None) == (getattr(request, other) is None):
            raise MalformedRequest(f"send {one}, a text or a list of texts; {other} is another name of it")
    return request


def check_scores_pairs(info: ModelInfo) -> None:
    """Raise `MalformedRequest`, or `UnsupportedMedia`, unless the model has one score for a pair of texts."""
    TASKS.check_takes_texts(info, "only texts can be ranked")
    if len(info.labels) != 1:
        raise MalformedRequest(
            f"{info.name} has {len(info.labels)} labels, and a cross-encoder has one score; ask for its "
            f"labels at /v2/models/{info.name}/classify"
        )


def rerank_inputs(request: RerankRequest, info: ModelInfo, limits: Limits) -> list[Input]:
    """One pair of the query and each candidate."""
    return _inputs([(request.query, each) for each in request.candidates], info, limits)


def score_inputs(request: ScoreRequest, info: ModelInfo, limits: Limits) -> list[Input]:
    """The pairs of a request."""
    return _inputs(request.pairs, info, limits)


def encode_rerank(
    request: RerankRequest, info: ModelInfo, answer: Classified, *, request_id: str, returns_documents: bool
) -> bytes:
    """The JSON of a `RerankResponse`. `returns_documents`: what a null `return_documents` means."""
    scores = request.scores(info, answer.logits)
    order = np.argsort(-scores, kind="stable")[: request.top_n or None].tolist()
    if request.texts is not None:
        texts = request.texts if request.return_text or request.return_documents else None
        told = [{"text": texts[row]} if texts else {} for row in order]
        ranks = [{"index": row, "score": float(scores[row])} for row in order]
        return to_json([{**rank, **its} for rank, its in zip(ranks, told, strict=True)])
    wanted = returns_documents if request.return_documents is None else request.return_documents
    documents = request.candidates if wanted or request.return_text else None
    return to_json(
        {
            "id": f"rerank-{request.request_id or request_id}",
            "object": "list",
            "model": info.name,
            "results": [
                {
                    "index": row,
                    "relevance_score": float(scores[row]),
                    **({"document": {"text": documents[row]}} if documents else {}),
                }
                for row in order
            ],
            "usage": _usage(answer),
        }
    )


def encode_score(
    request: ScoreRequest, info: ModelInfo, answer: Classified, *, request_id: str, created_s: int
) -> bytes:
    """The JSON of a `ScoreResponse`."""
    scores = request.scores(info, answer.logits).tolist()
    return to_json(
        {
            "id": f"score-{request.request_id or request_id}",
            "object": "list",
            "created": created_s,
            "model": info.name,
            "data": [{"index": n, "object": "score", "score": score} for n, score in enumerate(scores)],
            "usage": _usage(answer),
        }
    )


def _usage(answer: Classified) -> dict[str, int]:
    return {"prompt_tokens": answer.num_tokens, "total_tokens": answer.num_tokens}


def _inputs(pairs: list[tuple[str, str]], info: ModelInfo, limits: Limits) -> list[Input]:
    check_scores_pairs(info)
    check_num_items(len(pairs), limits)
    return [text_input(index, first, second, limits) for index, (first, second) in enumerate(pairs)]


def _listed(texts: str | list[str] | None) -> list[str]:
    return [texts] if isinstance(texts, str) else list(texts or ())
