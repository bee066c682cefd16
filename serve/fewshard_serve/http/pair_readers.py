"""Reads the bodies of reranking and scoring over HTTP, and encodes the answers; for pairs of texts."""

import time

from fewshard_core.values import ModelInfo
from fewshard_serve.core import Classified, PredictionRequest
from fewshard_serve.http.prediction_readers import (
    Prediction,
    Reader,
    UnboundPrediction,
    model_of,
    tei_headers,
)
from fewshard_serve.http.request import Request, off_loop
from fewshard_serve.http.responses import Response
from fewshard_serve.protocol import rerank
from fewshard_serve.protocol.limits import Limits


def read_rerank(returns_documents: bool) -> Reader:
    """The reader of a path whose API gives the documents back, or does not."""

    async def read(request: Request, body: bytes, limits: Limits) -> UnboundPrediction:
        parsed = await off_loop(request, len(body), rerank.parse_rerank, body, limits)

        def encode(info: ModelInfo, answer: Classified) -> Response:
            told = rerank.encode_rerank(
                parsed, info, answer, request_id=request.id, returns_documents=returns_documents
            )
            if parsed.texts is None:
                return Response(told)
            num_characters = len(parsed.query) * len(parsed.texts) + sum(map(len, parsed.texts))
            return Response(told, headers=tei_headers(request, info, answer, num_characters))

        def bind(info: ModelInfo) -> Prediction:
            inputs = rerank.rerank_inputs(parsed, info, limits)
            truncate = parsed.truncate is not False
            asked = PredictionRequest(inputs, truncate, request.seconds_left(), request.caller)
            return Prediction(asked, lambda answer: encode(info, answer))

        return UnboundPrediction(model_of(request, parsed.model), len(body), bind)

    return read


async def read_score(request: Request, body: bytes, limits: Limits) -> UnboundPrediction:
    """Read a `/score` request of vLLM."""
    parsed = await off_loop(request, len(body), rerank.parse_score, body, limits)

    def encode(info: ModelInfo, answer: Classified) -> Response:
        created_s = int(time.time())
        return Response(rerank.encode_score(parsed, info, answer, request_id=request.id, created_s=created_s))

    def bind(info: ModelInfo) -> Prediction:
        inputs = rerank.score_inputs(parsed, info, limits)
        truncate = parsed.truncate is not False
        asked = PredictionRequest(inputs, truncate, request.seconds_left(), request.caller)
        return Prediction(asked, lambda answer: encode(info, answer))

    return UnboundPrediction(model_of(request, parsed.model), len(body), bind)
