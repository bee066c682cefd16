"""Requests that are read before it is known which model answers them; for the gateway and hosts."""

import time
from collections.abc import Callable
from dataclasses import dataclass

from fewshard_serve.core import Classified, Input, ModelInfo
from fewshard_serve.errors import MalformedRequest
from fewshard_serve.http import jobs
from fewshard_serve.http.body import off_loop, read_body
from fewshard_serve.http.request import Request
from fewshard_serve.http.responses import Response
from fewshard_serve.protocol import classify, tei, vllm
from fewshard_serve.protocol.limits import Limits


@dataclass(frozen=True, slots=True)
class Question:
    """`model` is None where the caller leaves the choice to a server that has but one."""

    model: str | None
    num_bytes: int
    truncate: bool
    to_inputs: Callable[[ModelInfo, Limits], list[Input]]
    encode: Callable[[ModelInfo, Classified], Response]

    async def job(self, request: Request, info: ModelInfo, limits: Limits) -> jobs.Job:
        """What to ask that model, and how to word its answer."""
        inputs = await off_loop(self.num_bytes, self.to_inputs, info, limits)
        return jobs.Job(
            inputs, self.truncate, request.seconds_left(), lambda answer: self.encode(info, answer)
        )


async def read_classify(request: Request, limits: Limits) -> Question:
    """`POST /classify`: JSON with the model in it, or an image with the model in the query."""
    body = await read_body(request, limits)
    if jobs.has_image_body(request):
        return _image_question(request, body)
    parsed = await off_loop(len(body), classify.parse_gateway_classify, body, limits)
    return Question(
        parsed.model,
        len(body),
        parsed.truncate,
        lambda info, limits: classify.to_inputs(parsed, info, limits),
        lambda info, answer: Response(classify.encode_classify(parsed, info, answer)),
    )


async def read_predict(request: Request, limits: Limits) -> Question:
    """`POST /predict` of text-embeddings-inference."""
    body = await read_body(request, limits)
    parsed = await off_loop(len(body), tei.parse, body, limits)

    def encode(info: ModelInfo, answer: Classified) -> Response:
        told = tei.headers(answer, tei.num_characters(parsed), request.elapsed_s, info.device)
        headers = tuple((name.encode(), value.encode()) for name, value in told.items())
        return Response(tei.encode(parsed, info, answer), headers=headers)

    return Question(
        parsed.model or request.query.get("model"),
        len(body),
        parsed.truncate is not False,
        lambda info, limits: tei.to_inputs(parsed, info, limits),
        encode,
    )


async def read_vllm(request: Request, limits: Limits) -> Question:
    """`POST /v1/classify` of vLLM."""
    body = await read_body(request, limits)
    parsed = await off_loop(len(body), vllm.parse, body, limits)

    def encode(info: ModelInfo, answer: Classified) -> Response:
        created_s = int(time.time())
        return Response(vllm.encode(parsed, info, answer, request_id=request.id, created_s=created_s))

    return Question(
        parsed.model,
        len(body),
        parsed.truncate_prompt_tokens is not None,
        lambda info, limits: vllm.to_inputs(parsed, info, limits),
        encode,
    )


def _image_question(request: Request, body: bytes) -> Question:
    query = request.query
    if "model" not in query:
        raise MalformedRequest(
            "an image sent as the body needs its model in the query: /classify?model=<name>"
        )
    model, options = query.pop("model"), jobs.image_options(query)
    return Question(
        model,
        len(body),
        options.truncate,
        lambda info, limits: classify.image_body(body, info, limits),
        lambda info, answer: Response(classify.encode_classify(options, info, answer)),
    )
