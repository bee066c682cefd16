"""Handlers of predictions over HTTP: read the body once, bind it to a model, classify, encode the answer.

`predict_with_model` makes handlers for paths that name the model, and `predict_by_name` for bodies that name
it; they differ only in how the model is found. `prediction_routes` lists both, each with a reader of
`prediction_readers`.
"""

import time
from collections.abc import Coroutine
from dataclasses import replace
from typing import Any

import numpy as np

from fewshard_serve.core import Classified
from fewshard_serve.errors import InternalError, MalformedRequest, Overloaded
from fewshard_serve.http.body import read_body
from fewshard_serve.http.large_bodies import LARGE_BYTES
from fewshard_serve.http.prediction_readers import Prediction, Reader
from fewshard_serve.http.request import Request, off_loop, while_connected
from fewshard_serve.http.responses import Response
from fewshard_serve.http.routing import Handler
from fewshard_serve.http.service import (
    GatewayContext,
    HostContext,
    ServedModel,
    find_gateway_model,
    not_ready,
)
from fewshard_serve.http.versions import answering, find_host_model, split_key
from fewshard_serve.protocol.json_guard import quoted

_JSON_BYTES_PER_NUMBER = 20


def predict_with_model(read: Reader) -> Handler:
    """The handler of a replica's route. The path names the model, whose statistics count the outcome."""

    async def handle(host: HostContext, request: Request) -> Response:
        model = answering(find_host_model(host, request), request)
        try:
            if not model.ready:
                raise not_ready(model)
            _refuse_early(request, model)
            unbound = await read(request, await read_body(request, host.limits), host.limits)
            if unbound.model not in (None, model.info.name):
                raise MalformedRequest(
                    f"the path names the model {model.info.name}, the request {quoted(unbound.model)}"
                )
            prediction = await off_loop(request, unbound.num_bytes, unbound.bind, model.info)
            answer = await _answer(request, model.classify(prediction.request))
            response = await _encode(request, prediction, answer)
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
        prediction = await off_loop(request, unbound.num_bytes, unbound.bind, info)
        asked, key = prediction.request, split_key(request)
        if key:
            asked = replace(asked, split_key=key)
        answer = await _answer(request, gateway.service.classify(info.name, asked))
        return await _encode(request, prediction, answer)

    return handle


def check_finite(answer: Classified) -> None:
    """Raise `InternalError` if a model's answer contains NaN or infinity."""
    if not np.isfinite(answer.logits).all():
        raise InternalError("the model answered with NaN or infinity; its weights or a kernel are broken")


async def _answer(request: Request, work: Coroutine[Any, Any, Classified]) -> Classified:
    answer = await while_connected(request, work)
    request.note_answer(answer.timings)
    check_finite(answer)
    return answer


async def _encode(request: Request, prediction: Prediction, answer: Classified) -> Response:
    num_values = answer.num_tokens if answer.tokens else answer.logits.size
    return await off_loop(request, num_values * _JSON_BYTES_PER_NUMBER, prediction.encode, answer)


def _refuse_early(request: Request, model: ServedModel) -> None:
    """Raise `Overloaded` before the body is read if no request would be admitted."""
    try:
        model.check_room(request.caller)
    except Overloaded:
        # A small body has arrived with the headers. For a large one, close the connection: do not receive it.
        length = request.headers.get(b"content-length", b"")
        request.is_body_abandoned = not length.isdigit() or int(length[:18]) > LARGE_BYTES
        raise
