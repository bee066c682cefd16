"""Handlers of a replica's routes other than predictions: metadata, statistics, experts, metrics.

`routes` lists them.
"""

import asyncio
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from fewshard_core.values import ModelInfo
from fewshard_serve.errors import NotFound
from fewshard_serve.http.body import read_body
from fewshard_serve.http.request import Request, off_loop
from fewshard_serve.http.responses import Response, error_response, json_response, metrics_response
from fewshard_serve.http.service import HostContext, joined_stats, not_ready
from fewshard_serve.http.versions import (
    VersionedModel,
    find_host_model,
    key_of,
    service_key,
    version_names,
)
from fewshard_serve.protocol import model_tensors
from fewshard_serve.protocol.limits import Limits
from fewshard_serve.protocol.placement import parse_placement


async def metadata(host: HostContext, request: Request) -> Response:
    model = find_host_model(host, request)
    return json_response({**model_tensors.metadata(model.info), "versions": version_names(model)})


async def ready(host: HostContext, request: Request) -> Response:
    model = find_host_model(host, request)
    name = model.info.name
    if not model.ready:
        return error_response(not_ready(model), name=name, ready=False)
    return json_response({"name": name, "ready": True})


async def config(host: HostContext, request: Request) -> Response:
    return json_response(describe(find_host_model(host, request).info, host.limits))


def describe(info: ModelInfo, limits: Limits) -> dict[str, Any]:
    """The body of `GET …/config`: the model's description and card, its input tensors, and the limits.

    The keys of Triton's configuration are among them.
    """
    own = {**asdict(info), "inputs": model_tensors.input_tensors(info), "limits": asdict(limits)}
    return {**model_tensors.triton_config(info, limits), **own}


async def stats(host: HostContext, request: Request) -> Response:
    model = find_host_model(host, request)
    if not isinstance(model, VersionedModel):
        return json_response(await host.service.merged_stats(service_key(host, model)))
    return await _stats(host, [key_of(model.info.name, version) for version in model.versions])


async def stats_of_all(host: HostContext, _: Request) -> Response:
    models = host.service.models()
    return await _stats(host, [key for key in models if not isinstance(models[key], VersionedModel)])


async def _stats(host: HostContext, keys: Sequence[str]) -> Response:
    return json_response(joined_stats(await asyncio.gather(*map(host.service.merged_stats, keys))))


async def experts(host: HostContext, request: Request) -> Response:
    model = find_host_model(host, request)
    info = model.info
    found = await host.service.merged_experts(service_key(host, model))
    if found is None:
        raise NotFound(f"{info.name} has no experts; its kind is {info.kind}")
    return json_response(found)


async def placement(host: HostContext, request: Request) -> Response:
    model = find_host_model(host, request)
    body = await read_body(request, host.limits)
    wanted = await off_loop(request, len(body), parse_placement, body, host.limits)
    fields = wanted.model_dump(exclude_none=True)
    return json_response(await host.service.place(service_key(host, model), fields))


async def metrics(host: HostContext, request: Request) -> Response:
    find_host_model(host, request)
    return await metrics_of_replica(host, request)


async def metrics_of_replica(host: HostContext, request: Request) -> Response:
    is_open = request.wants_open_metrics
    return metrics_response(await host.service.metrics_text(is_open), is_open)
