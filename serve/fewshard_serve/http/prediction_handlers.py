"""Handlers of predictions over HTTP: read the body once, bind it to a model, classify, encode the answer.

There is one reader per protocol. `predict_with_model` makes handlers for paths that name the model, and
`predict_by_name` for bodies that name it; they differ only in how the model is found. `routes` lists both.
"""

import time
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from pydantic import ValidationError

from fewshard_core.values import Input, ModelInfo
from fewshard_serve.core import Classified, PredictionRequest
from fewshard_serve.errors import InternalError, MalformedRequest, Overloaded, UnsupportedMedia
from fewshard_serve.http.request import LARGE_BYTES, Request, off_loop, read_body, while_connected
from fewshard_serve.http.responses import OCTETS, Response
from fewshard_serve.http.routing import Handler
from fewshard_serve.http.service import (
    GatewayContext,
    HostContext,
    ServedModel,
    find_gateway_model,
    find_host_model,
    not_ready,
)
from fewshard_serve.protocol import classify, explain, model_tensors, oip, tei, vllm
from fewshard_serve.protocol.limits import Limits
from fewshard_serve.protocol.tasks import TASKS, Task

JSON_SIZE_HEADER = b"inference-header-content-length"

_JSON_BYTES_PER_NUMBER = 20


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


Reader = Callable[[Request, bytes, Limits], Awaitable[UnboundPrediction]]
"""Reads the body of a request in one protocol."""


async def read_infer(request: Request, body: bytes, limits: Limits) -> UnboundPrediction:
    """Read a V2 inference request, JSON or binary."""

    def bind(info: ModelInfo) -> Prediction:
        parsed = oip.parse_infer(body, request.header(JSON_SIZE_HEADER), limits)
        inputs = infer_inputs(parsed, info, limits)
        timeout_s = request.seconds_left(parsed.timeout_s)
        asked = PredictionRequest(inputs, parsed.truncate, timeout_s, request.caller)
        return Prediction(asked, lambda answer: _infer(parsed, info, answer))

    return UnboundPrediction(None, len(body), bind)


async def read_classify(request: Request, body: bytes, limits: Limits) -> UnboundPrediction:
    """Read a classify request: JSON, or the bytes of one item, such as an image file."""
    if sent := task_of_body(request):
        return _file(request, body, sent, None, file_options(request.query), limits)

    def bind(info: ModelInfo) -> Prediction:
        parsed = classify.parse_classify(body, limits)
        return _classification(request, classify.to_inputs(parsed, info, limits), parsed, info)

    return UnboundPrediction(None, len(body), bind)


async def read_named_classify(request: Request, body: bytes, limits: Limits) -> UnboundPrediction:
    """Read a classify request with the model in the JSON, or in the query if the body is a file."""
    if sent := task_of_body(request):
        query = request.query
        if "model" not in query:
            raise MalformedRequest(
                f"{sent.item_noun} sent as the body needs its model in the query: /classify?model=<name>"
            )
        model = query.pop("model")
        return _file(request, body, sent, model, file_options(query), limits)
    parsed = await off_loop(len(body), classify.parse_gateway_classify, body, limits)

    def bind(info: ModelInfo) -> Prediction:
        return _classification(request, classify.to_inputs(parsed, info, limits), parsed, info)

    return UnboundPrediction(parsed.model, len(body), bind)


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
    parsed = await off_loop(len(body), tei.parse, body, limits)

    def bind(info: ModelInfo) -> Prediction:
        inputs = tei.to_inputs(parsed, info, limits)
        truncate = parsed.truncate is not False
        asked = PredictionRequest(inputs, truncate, request.seconds_left(), request.caller)
        return Prediction(asked, lambda answer: _tei(request, parsed, info, answer))

    return UnboundPrediction(parsed.model or request.query.get("model"), len(body), bind)


async def read_vllm(request: Request, body: bytes, limits: Limits) -> UnboundPrediction:
    """Read a `/v1/classify` request of vLLM."""
    parsed = await off_loop(len(body), vllm.parse, body, limits)

    def bind(info: ModelInfo) -> Prediction:
        inputs = vllm.to_inputs(parsed, info, limits)
        truncate = parsed.truncate_prompt_tokens is not None
        asked = PredictionRequest(inputs, truncate, request.seconds_left(), request.caller)
        return Prediction(asked, lambda answer: _vllm(request, parsed, info, answer))

    return UnboundPrediction(parsed.model, len(body), bind)


def predict_with_model(read: Reader) -> Handler:
    """The handler of a replica's route. The path names the model, whose statistics count the outcome."""

    async def handle(host: HostContext, request: Request) -> Response:
        model = find_host_model(host, request)
        try:
            if not model.ready:
                raise not_ready(model)
            _refuse_early(request, model)
            unbound = await read(request, await read_body(request, host.limits), host.limits)
            prediction = await off_loop(unbound.num_bytes, unbound.bind, model.info)
            answer = await _answer(request, model.classify(prediction.request))
            response = await _encode(prediction, answer)
        except BaseException:
            model.stats.add_failure(request.elapsed_s)
            raise
        encode_s = time.monotonic() - request.answered_at
        model.stats.add_request(request.elapsed_s, answer.timings, encode_s)
        return response

    return handle


def predict_by_name(read: Reader) -> Handler:
    """The handler of a gateway's route. The body names the model unless the server has only one."""

    async def handle(gateway: GatewayContext, request: Request) -> Response:
        unbound = await read(request, await read_body(request, gateway.limits), gateway.limits)
        info = await find_gateway_model(gateway, request, unbound.model)
        prediction = await off_loop(unbound.num_bytes, unbound.bind, info)
        answer = await _answer(request, gateway.service.classify(info.name, prediction.request))
        return await _encode(prediction, answer)

    return handle


def infer_inputs(parsed: oip.InferRequest, info: ModelInfo, limits: Limits) -> list[Input]:
    """The items of a V2 request, from HTTP or gRPC. Raises as the parsers do."""
    model_tensors.check_outputs(parsed)
    return model_tensors.to_inputs(parsed, info, limits)


def check_finite(answer: Classified) -> None:
    """Raise `InternalError` if a model's answer contains NaN or infinity."""
    if not np.isfinite(answer.logits).all():
        raise InternalError("the model answered with NaN or infinity; its weights or a kernel are broken")


def task_of_body(request: Request) -> Task | None:
    """The task whose item is the body, such as an image file; None if the body is JSON.

    Content types other than multipart and those of tasks are read as JSON, because curl and V2 clients often
    send none or a wrong one.
    """
    media_type = request.media_type
    if media_type in ("", "application/json"):  # the usual case, without a look-up in each task
        return None
    if media_type.startswith("multipart/"):
        files = ", or ".join(task.file_help for task in TASKS if task.media_range)
        raise UnsupportedMedia(f"forms are not read here; send JSON, or {files}")
    return TASKS.of_media_type(media_type)


def file_options(query: dict[str, str]) -> classify.ClassifyOptions:
    """`top_k` and `raw_scores` from the query of a request whose body is a file."""
    try:
        return classify.ClassifyOptions.model_validate_strings(query)
    except ValidationError as error:
        raise MalformedRequest(classify.explain(error, classify.ClassifyOptions)) from None


async def _answer(request: Request, work: Coroutine[Any, Any, Classified]) -> Classified:
    answer = await while_connected(request, work)
    request.note_answer(answer.timings)
    check_finite(answer)
    return answer


async def _encode(prediction: Prediction, answer: Classified) -> Response:
    return await off_loop(answer.logits.size * _JSON_BYTES_PER_NUMBER, prediction.encode, answer)


def _refuse_early(request: Request, model: ServedModel) -> None:
    """Raise `Overloaded` before the body is read if no request would be admitted."""
    try:
        model.check_room(request.caller)
    except Overloaded:
        # A small body has arrived with the headers. For a large one, close the connection: do not receive it.
        length = request.headers.get(b"content-length", b"")
        request.is_body_abandoned = not length.isdigit() or int(length[:18]) > LARGE_BYTES
        raise


def _file(
    request: Request,
    body: bytes,
    sent: Task,
    model: str | None,
    options: classify.ClassifyOptions,
    limits: Limits,
) -> UnboundPrediction:
    def bind(info: ModelInfo) -> Prediction:
        return _classification(request, classify.file_inputs(body, sent, info, limits), options, info)

    return UnboundPrediction(model, 0, bind)


def _classification(
    request: Request, inputs: Sequence[Input], options: classify.ClassifyOptions, info: ModelInfo
) -> Prediction:
    asked = PredictionRequest(inputs, options.truncate, request.seconds_left(), request.caller)
    return Prediction(asked, lambda answer: Response(classify.encode_classify(options, info, answer)))


def _infer(parsed: oip.InferRequest, info: ModelInfo, answer: Classified) -> Response:
    outputs = model_tensors.to_outputs(parsed, info, answer.logits)
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


def _tei(request: Request, parsed: tei.PredictRequest, info: ModelInfo, answer: Classified) -> Response:
    given = tei.headers(answer, tei.num_characters(parsed), request.elapsed_s, info.device)
    headers = tuple((name.encode(), value.encode()) for name, value in given.items())
    return Response(tei.encode(parsed, info, answer), headers=headers)


def _vllm(
    request: Request, parsed: vllm.VllmClassifyRequest, info: ModelInfo, answer: Classified
) -> Response:
    created_s = int(time.time())
    return Response(vllm.encode(parsed, info, answer, request_id=request.id, created_s=created_s))
