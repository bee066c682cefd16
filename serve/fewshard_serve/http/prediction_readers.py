"""Reads the bodies of predictions over HTTP, one function for each protocol, and encodes the answers.

`prediction_handlers` makes handlers of the readers.
"""

import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from pydantic import ValidationError

from fewshard_core.values import Input, ModelInfo
from fewshard_serve.core import Classified, PredictionRequest
from fewshard_serve.errors import MalformedRequest, UnsupportedMedia
from fewshard_serve.http.request import Request, off_loop
from fewshard_serve.http.responses import OCTETS, Headers, Response
from fewshard_serve.protocol import classify, explain, model_tensors, oip, pipeline, tei, vllm
from fewshard_serve.protocol.json_guard import quoted
from fewshard_serve.protocol.limits import Limits
from fewshard_serve.protocol.tasks import TASKS, Task

JSON_SIZE_HEADER = b"inference-header-content-length"


@dataclass(frozen=True, slots=True)
class Prediction:
    """A request to one model, and the function that encodes its answer."""

    request: PredictionRequest
    encode: Callable[[Classified], Response]


@dataclass(frozen=True, slots=True)
class UnboundPrediction:
    """A body that has been read, while the model is not known yet.

    model: the model that the body names; None if it names none.
    num_bytes: the bytes that `bind` processes.
    bind: makes a `Prediction` for a model; raises as the parsers do.
    """

    model: str | None
    num_bytes: int
    bind: Callable[[ModelInfo], Prediction]


Encode = Callable[[classify.ClassifyOptions, ModelInfo, Classified], bytes]
"""Encodes the answer to a request whose options are those of classify."""

Reader = Callable[[Request, bytes, Limits], Awaitable[UnboundPrediction]]
"""Reads the body of a request in one protocol."""


async def read_infer(request: Request, body: bytes, limits: Limits) -> UnboundPrediction:
    """Read a V2 inference request, JSON or binary."""

    def bind(info: ModelInfo) -> Prediction:
        expected = model_tensors.expected(info, limits)
        parsed = oip.parse_infer(body, request.header(JSON_SIZE_HEADER), limits, expected)
        inputs = infer_inputs(parsed, info, limits)
        timeout_s = request.seconds_left(parsed.timeout_s)
        asked = PredictionRequest(inputs, parsed.truncate, timeout_s, request.caller)
        return Prediction(asked, lambda answer: _infer(parsed, info, answer))

    return UnboundPrediction(None, len(body), bind)


async def read_classify(request: Request, body: bytes, limits: Limits) -> UnboundPrediction:
    """Read a classify request: JSON, or the bytes of one item, such as an image file."""
    if sent := task_of_body(request, body):
        return _file(request, body, sent, None, file_options(request.query), limits)

    def bind(info: ModelInfo) -> Prediction:
        parsed = classify.parse_classify(body, limits)
        return _classification(request, classify.to_inputs(parsed, info, limits), parsed, info)

    return UnboundPrediction(model_of(request, None), len(body), bind)


async def read_named_classify(request: Request, body: bytes, limits: Limits) -> UnboundPrediction:
    """Read a classify request with the model in the JSON, or in the query if the body is a file."""
    if sent := task_of_body(request, body):
        query = request.query
        model = query.pop("model", None)
        return _file(request, body, sent, model, file_options(query), limits)
    parsed = await off_loop(request, len(body), classify.parse_gateway_classify, body, limits)

    def bind(info: ModelInfo) -> Prediction:
        return _classification(request, classify.to_inputs(parsed, info, limits), parsed, info)

    return UnboundPrediction(model_of(request, parsed.model), len(body), bind)


async def read_explain(request: Request, body: bytes, limits: Limits) -> UnboundPrediction:
    """Read a request to explain an answer."""

    def bind(info: ModelInfo) -> Prediction:
        query = explain.parse_explain(body, info, limits)
        probing = replace(request.caller, is_probing=True)
        asked = PredictionRequest(query.inputs, True, request.seconds_left(), probing)
        return Prediction(asked, lambda answer: Response(explain.encode_explain(query, info, answer)))

    return UnboundPrediction(None, len(body), bind)


async def read_tei(request: Request, body: bytes, limits: Limits) -> UnboundPrediction:
    """Read a `/predict` request of text-embeddings-inference."""
    parsed = await off_loop(request, len(body), tei.parse, body, limits)

    def bind(info: ModelInfo) -> Prediction:
        inputs = tei.to_inputs(parsed, info, limits)
        asked = PredictionRequest(inputs, parsed.cuts, request.seconds_left(), request.caller)
        return Prediction(asked, lambda answer: _tei(request, parsed, info, tei.encode, answer))

    return UnboundPrediction(model_of(request, parsed.model), len(body), bind)


async def read_pipeline(request: Request, body: bytes, limits: Limits) -> UnboundPrediction:
    """Read a request of a client of Hugging Face's pipelines: JSON, or the bytes of one item."""
    if sent := task_of_body(request, body):
        query = request.query
        model, options = query.pop("model", None), file_options(query)
        return _file(request, body, sent, model, options, limits, pipeline.encode_file)
    parsed = await off_loop(request, len(body), pipeline.parse, body, limits)

    def bind(info: ModelInfo) -> Prediction:
        inputs = pipeline.to_inputs(parsed, info, limits)
        asked = PredictionRequest(inputs, parsed.cuts, request.seconds_left(), request.caller)
        return Prediction(asked, lambda answer: _tei(request, parsed, info, pipeline.encode, answer))

    return UnboundPrediction(model_of(request, parsed.model), len(body), bind)


async def read_invocation(request: Request, body: bytes, limits: Limits) -> UnboundPrediction:
    """Read a request of SageMaker, in the form of Hugging Face's containers or of vLLM's."""
    try:
        return await read_pipeline(request, body, limits)
    except MalformedRequest:
        if b'"input"' not in body:
            raise
        return await read_vllm(request, body, limits)


async def read_vllm(request: Request, body: bytes, limits: Limits) -> UnboundPrediction:
    """Read a `/v1/classify` request of vLLM."""
    parsed = await off_loop(request, len(body), vllm.parse, body, limits)

    def bind(info: ModelInfo) -> Prediction:
        inputs = vllm.to_inputs(parsed, info, limits)
        truncate = parsed.truncate_prompt_tokens is not None
        asked = PredictionRequest(inputs, truncate, request.seconds_left(), request.caller)
        return Prediction(asked, lambda answer: _vllm(request, parsed, info, answer))

    return UnboundPrediction(model_of(request, parsed.model), len(body), bind)


def infer_inputs(parsed: oip.InferRequest, info: ModelInfo, limits: Limits) -> list[Input]:
    """The items of a V2 request, from HTTP or gRPC. Raises as the parsers do."""
    model_tensors.check_outputs(parsed, info)
    return model_tensors.to_inputs(parsed, info, limits)


def task_of_body(request: Request, body: bytes) -> Task | None:
    """The task whose item is the body, such as an image file; None if the body is JSON.

    Clients often send no Content-Type, or a wrong one. Then the first bytes decide, which JSON cannot share
    with a file; what is no file of a task is read as JSON.
    """
    media_type = request.media_type
    if media_type == "application/json":
        return None
    if media_type.startswith("multipart/"):
        files = ", or ".join(task.file_help for task in TASKS if task.media_range)
        raise UnsupportedMedia(f"forms are not read here; send JSON, or {files}")
    return TASKS.of_media_type(media_type) or TASKS.of_file(body)


def file_options(query: dict[str, str]) -> classify.ClassifyOptions:
    """`top_k` and `raw_scores` from the query of a request whose body is a file."""
    try:
        return classify.ClassifyOptions.model_validate_strings(query)
    except ValidationError as error:
        raise MalformedRequest(classify.explain(error, classify.ClassifyOptions)) from None


def model_of(request: Request, stated: str | None) -> str | None:
    """The model that the JSON or the query names. Raises `MalformedRequest` if they name two, and for options
    in the query, where those of JSON are not heard."""
    query = request.query
    for key in query.keys() & classify.ClassifyOptions.model_fields.keys():
        raise MalformedRequest(f"the query holds {key}, and the body is JSON; put options into the JSON")
    asked = query.get("model")
    if stated and asked and stated != asked:
        raise MalformedRequest(
            f"the body names the model {quoted(stated)}, the query {quoted(asked)}; name one"
        )
    return stated or asked


def _file(
    request: Request,
    body: bytes,
    sent: Task,
    model: str | None,
    options: classify.ClassifyOptions,
    limits: Limits,
    encode: Encode = classify.encode_classify,
) -> UnboundPrediction:
    def bind(info: ModelInfo) -> Prediction:
        return _classification(request, classify.file_inputs(body, sent, info, limits), options, info, encode)

    return UnboundPrediction(model, 0, bind)


def _classification(
    request: Request,
    inputs: Sequence[Input],
    options: classify.ClassifyOptions,
    info: ModelInfo,
    encode: Encode = classify.encode_classify,
) -> Prediction:
    TASKS.of(info).check_options(options.wished)
    truncate = options.truncate is not False
    asked = PredictionRequest(inputs, truncate, request.seconds_left(), request.caller)
    return Prediction(asked, lambda answer: Response(encode(options, info, answer)))


def _infer(parsed: oip.InferRequest, info: ModelInfo, answer: Classified) -> Response:
    outputs = model_tensors.to_outputs(parsed, info, answer)
    encoded = oip.encode_response(
        oip.InferResponse(info.name, info.version, parsed.id, _cost(answer)), outputs
    )
    if encoded.json_size is None:
        return Response(encoded.body)
    return Response(encoded.body, OCTETS, headers=((JSON_SIZE_HEADER, b"%d" % encoded.json_size),))


def _cost(answer: Classified) -> dict[str, Any]:
    """The parameters of a V2 response, like `usage` and `timings_ms` in `ClassifyResponse`."""
    stages = {f"{stage}_ms": spent for stage, spent in classify.timings_ms(answer).items()}
    spoke = {"stages": ",".join(answer.stages)} if answer.stages else {}
    return {"tokens": answer.num_tokens, **stages, **spoke, **classify.degraded(answer)}


def _tei(
    request: Request,
    parsed: tei.PredictRequest,
    info: ModelInfo,
    encode: Callable[[tei.PredictRequest, ModelInfo, Classified], bytes],
    answer: Classified,
) -> Response:
    headers = tei_headers(request, info, answer, tei.num_characters(parsed))
    return Response(encode(parsed, info, answer), headers=headers)


def tei_headers(request: Request, info: ModelInfo, answer: Classified, num_characters: int) -> Headers:
    """The response headers of text-embeddings-inference."""
    given = tei.headers(answer, num_characters, request.elapsed_s, info.device)
    return tuple((name.encode(), value.encode()) for name, value in given.items())


def _vllm(
    request: Request, parsed: vllm.VllmClassifyRequest, info: ModelInfo, answer: Classified
) -> Response:
    created_s = int(time.time())
    return Response(vllm.encode(parsed, info, answer, request_id=request.id, created_s=created_s))
