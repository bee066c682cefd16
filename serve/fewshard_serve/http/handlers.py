"""From a request to the items a model should classify, and from its answer to a response.

`host` and `gateway` read a job, have it run by whatever stands behind them, and send what it encodes.

Requests that are read before it is known which model answers them; for the gateway and hosts.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from pydantic import ValidationError

from fewshard_core.values import Input, ModelInfo
from fewshard_serve.core import Classified
from fewshard_serve.errors import InternalError, MalformedRequest, UnsupportedMedia
from fewshard_serve.http.request import Request, off_loop, read_body
from fewshard_serve.http.responses import OCTETS, Response
from fewshard_serve.protocol import classify, explain, model_tensors, oip, tei, vllm
from fewshard_serve.protocol.limits import Limits
from fewshard_serve.protocol.tasks import TASKS, Task

JSON_SIZE_HEADER = b"inference-header-content-length"

_JSON_BYTES_PER_NUMBER = 20


@dataclass(frozen=True, slots=True)
class PredictionRequest:
    """What to classify, and how to word the answer. `timeout_s` counts from the moment of reading it.

    `is_probing`: as in `Caller`.
    """

    inputs: Sequence[Input]
    truncate: bool
    timeout_s: float | None
    encode: Callable[[Classified], Response]
    is_probing: bool = False


async def read_infer(request: Request, info: ModelInfo, limits: Limits) -> PredictionRequest:
    """A V2 inference request, JSON or binary."""
    body = await read_body(request, limits)
    json_size = request.header(JSON_SIZE_HEADER)
    parsed, inputs = await off_loop(len(body), _parse_infer, body, json_size, info, limits)
    return PredictionRequest(
        inputs,
        parsed.truncate,
        request.seconds_left(parsed.timeout_s),
        lambda answer: _infer(parsed, info, answer),
    )


async def read_classify(request: Request, info: ModelInfo, limits: Limits) -> PredictionRequest:
    """A classify request: JSON, or the bytes of one item, such as an image file."""
    body = await read_body(request, limits)
    if sent := task_of_body(request):
        return classify_job(
            request, classify.file_inputs(body, sent, info, limits), file_options(request.query), info
        )
    options, inputs = await off_loop(len(body), _parse_classify, body, info, limits)
    return classify_job(request, inputs, options, info)


async def read_explain(request: Request, info: ModelInfo, limits: Limits) -> PredictionRequest:
    """A request to explain an answer."""
    body = await read_body(request, limits)
    question = await off_loop(len(body), explain.parse_explain, body, info, limits)
    return PredictionRequest(
        question.inputs,
        True,
        request.seconds_left(),
        lambda answer: Response(explain.encode_explain(question, info, answer)),
        is_probing=True,
    )


def classify_job(
    request: Request, inputs: Sequence[Input], options: classify.ClassifyOptions, info: ModelInfo
) -> PredictionRequest:
    """A job whose answer is a `ClassifyResponse`."""
    return PredictionRequest(
        inputs,
        options.truncate,
        request.seconds_left(),
        lambda answer: Response(classify.encode_classify(options, info, answer)),
    )


async def encode(job: PredictionRequest, answer: Classified) -> Response:
    """The response to a job. Raises `InternalError` where the model's answer holds NaN or infinity."""
    if not np.isfinite(answer.logits).all():
        raise InternalError("the model answered with NaN or infinity; its weights or a kernel are broken")
    return await off_loop(answer.logits.size * _JSON_BYTES_PER_NUMBER, job.encode, answer)


def task_of_body(request: Request) -> Task | None:
    """The task of which the body is one item, an image file for instance; None where it is JSON.

    Any type but multipart and those of tasks is read as JSON: curl and V2 clients often name none, or a
    wrong one.
    """
    if request.media_type.startswith("multipart/"):
        files = ", or ".join(task.file_help for task in TASKS if task.media_range)
        raise UnsupportedMedia(f"forms are not read here; send JSON, or {files}")
    return TASKS.of_media_type(request.media_type)


def file_options(query: dict[str, str]) -> classify.ClassifyOptions:
    """`top_k` and `raw_scores` from the query of a request whose body is a file."""
    try:
        return classify.ClassifyOptions.model_validate_strings(query)
    except ValidationError as error:
        raise MalformedRequest(classify.explain(error, classify.ClassifyOptions)) from None


def _parse_infer(
    body: bytes, json_size: str | None, info: ModelInfo, limits: Limits
) -> tuple[oip.InferRequest, list[Input]]:
    parsed = oip.parse_infer(body, json_size, limits)
    model_tensors.check_outputs(parsed)
    return parsed, model_tensors.to_inputs(parsed, info, limits)


def _parse_classify(
    body: bytes, info: ModelInfo, limits: Limits
) -> tuple[classify.ClassifyRequest, list[Input]]:
    parsed = classify.parse_classify(body, limits)
    return parsed, classify.to_inputs(parsed, info, limits)


def _infer(parsed: oip.InferRequest, info: ModelInfo, answer: Classified) -> Response:
    outputs = model_tensors.to_outputs(parsed, info, answer.logits)
    encoded = oip.encode_response(
        oip.InferResponse(info.name, info.version, parsed.id, _cost(answer)), outputs
    )
    if encoded.json_size is None:
        return Response(encoded.body)
    return Response(encoded.body, OCTETS, headers=((JSON_SIZE_HEADER, b"%d" % encoded.json_size),))


def _cost(answer: Classified) -> dict[str, Any]:
    """What a V2 response tells as parameters and `ClassifyResponse` as `usage` and `timings_ms`."""
    stages = {f"{stage}_ms": spent for stage, spent in classify.timings_ms(answer).items()}
    spoke = {"stages": ",".join(answer.stages)} if answer.stages else {}
    return {"tokens": answer.num_tokens, **stages, **spoke, **classify.degraded(answer)}


@dataclass(frozen=True, slots=True)
class UnroutedRequest:
    """`model` is None where the caller leaves the choice to a server that has but one."""

    model: str | None
    num_bytes: int
    truncate: bool
    to_inputs: Callable[[ModelInfo, Limits], list[Input]]
    encode: Callable[[ModelInfo, Classified], Response]

    async def job(self, request: Request, info: ModelInfo, limits: Limits) -> PredictionRequest:
        """What to ask that model, and how to word its answer."""
        inputs = await off_loop(self.num_bytes, self.to_inputs, info, limits)
        return PredictionRequest(
            inputs, self.truncate, request.seconds_left(), lambda answer: self.encode(info, answer)
        )


async def read_unrouted_classify(request: Request, limits: Limits) -> UnroutedRequest:
    """`POST /classify`: JSON with the model in it, or a file with the model in the query."""
    body = await read_body(request, limits)
    if sent := task_of_body(request):
        return _file_question(request, body, sent)
    parsed = await off_loop(len(body), classify.parse_gateway_classify, body, limits)
    return UnroutedRequest(
        parsed.model,
        len(body),
        parsed.truncate,
        lambda info, limits: classify.to_inputs(parsed, info, limits),
        lambda info, answer: Response(classify.encode_classify(parsed, info, answer)),
    )


async def read_predict(request: Request, limits: Limits) -> UnroutedRequest:
    """`POST /predict` of text-embeddings-inference."""
    body = await read_body(request, limits)
    parsed = await off_loop(len(body), tei.parse, body, limits)

    def encode(info: ModelInfo, answer: Classified) -> Response:
        told = tei.headers(answer, tei.num_characters(parsed), request.elapsed_s, info.device)
        headers = tuple((name.encode(), value.encode()) for name, value in told.items())
        return Response(tei.encode(parsed, info, answer), headers=headers)

    return UnroutedRequest(
        parsed.model or request.query.get("model"),
        len(body),
        parsed.truncate is not False,
        lambda info, limits: tei.to_inputs(parsed, info, limits),
        encode,
    )


async def read_vllm(request: Request, limits: Limits) -> UnroutedRequest:
    """`POST /v1/classify` of vLLM."""
    body = await read_body(request, limits)
    parsed = await off_loop(len(body), vllm.parse, body, limits)

    def encode(info: ModelInfo, answer: Classified) -> Response:
        created_s = int(time.time())
        return Response(vllm.encode(parsed, info, answer, request_id=request.id, created_s=created_s))

    return UnroutedRequest(
        parsed.model,
        len(body),
        parsed.truncate_prompt_tokens is not None,
        lambda info, limits: vllm.to_inputs(parsed, info, limits),
        encode,
    )


def _file_question(request: Request, body: bytes, sent: Task) -> UnroutedRequest:
    query = request.query
    if "model" not in query:
        raise MalformedRequest(
            f"{sent.item_noun} sent as the body needs its model in the query: /classify?model=<name>"
        )
    model, options = query.pop("model"), file_options(query)
    return UnroutedRequest(
        model,
        len(body),
        options.truncate,
        lambda info, limits: classify.file_inputs(body, sent, info, limits),
        lambda info, answer: Response(classify.encode_classify(options, info, answer)),
    )
