"""Handlers of the gateway's routes other than predictions: health, index, metrics, tokens and pages.

`routes` lists them.
"""

import asyncio
import time
from collections.abc import Sequence
from dataclasses import replace

from fewshard_serve import __version__
from fewshard_serve.errors import ConfigError, MalformedRequest, NotFound, NotReady
from fewshard_serve.http.body import read_body
from fewshard_serve.http.request import Request
from fewshard_serve.http.responses import Response, error_response, json_response, metrics_response
from fewshard_serve.http.routing import Scope
from fewshard_serve.http.service import (
    EXTENSIONS,
    GatewayContext,
    GatewayService,
    ModelEntry,
    find_gateway_model,
    joined_stats,
)
from fewshard_serve.http.static import PAGE, console_file, docs_file
from fewshard_serve.protocol import repository, tei, vllm
from fewshard_serve.protocol.json_guard import read_json
from fewshard_serve.protocol.limits import Limits
from fewshard_serve.protocol.parameters import given

_STARTED_AT = int(time.time())


def wants_page(request: Request) -> bool:
    """Whether the client wants `/` as a page rather than as JSON."""
    accept = request.header(b"accept") or ""
    return "application/json" not in accept or "text/html" in accept


def home_scope(request: Request) -> Scope:
    """The scope of `/`. The page is open, since it asks for a token itself; the JSON needs a token."""
    return "open" if wants_page(request) else "any"


async def home(gateway: GatewayContext, request: Request) -> Response:
    if wants_page(request):
        return console_file(PAGE)
    models = [_described(entry) for entry in await gateway.service.model_index()]
    return json_response({"name": "fewshard", "version": __version__, "models": models})


async def console(_: GatewayContext, request: Request) -> Response:
    return console_file(request.parameters["file"])


async def docs(_: GatewayContext, request: Request) -> Response:
    if request.path.endswith("/"):  # the addresses in the page are relative
        return Response(b"", status=308, headers=((b"location", b"../docs"),))
    return await docs_file(request.parameters.get("file", PAGE))


async def openapi(gateway: GatewayContext, _: Request) -> Response:
    return Response(gateway.openapi)


async def metadata(_: GatewayContext, __: Request) -> Response:
    return json_response({"name": "fewshard", "version": __version__, "extensions": EXTENSIONS})


async def live(_: GatewayContext, __: Request) -> Response:
    return json_response({"live": True})


async def ready(gateway: GatewayContext, _: Request) -> Response:
    if await gateway.service.ready():
        return json_response({"ready": True})
    waiting = "the server"
    if gateway.tokens is None:  # the names of models are for those who have a token
        index = await gateway.service.model_index()
        waiting = ", ".join(entry.name for entry in index if entry.state != "READY") or waiting
    return error_response(NotReady(f"not ready yet: {waiting}; try again soon"), ready=False)


async def info(gateway: GatewayContext, request: Request) -> Response:
    model = await find_gateway_model(gateway, request, request.query.get("model"))
    return json_response(tei.model_info(model, gateway.limits))


async def version(_: GatewayContext, __: Request) -> Response:
    return json_response({"version": __version__})


async def openai_models(gateway: GatewayContext, _: Request) -> Response:
    entries = await gateway.service.model_index()
    return json_response(vllm.OpenAiModels(data=[_openai(e.name) for e in entries if e.state == "READY"]))


async def openai_model(gateway: GatewayContext, request: Request) -> Response:
    found = await find_gateway_model(gateway, request, request.parameters["model"])
    return json_response(_openai(found.name))


MAX_INDEX_BYTES = 4096
"""Any caller may ask, and the body says little: it is parsed on the event loop."""


async def index(gateway: GatewayContext, request: Request) -> Response:
    limits = replace(gateway.limits, max_body_bytes=MAX_INDEX_BYTES)
    only_ready = _wants_only_ready(await read_body(request, limits), limits)
    entries = await gateway.service.model_index()
    return json_response(index_lines(entries, only_ready))


async def load(gateway: GatewayContext, request: Request) -> Response:
    return await _change(gateway, request, "load")


async def unload(gateway: GatewayContext, request: Request) -> Response:
    return await _change(gateway, request, "unload")


async def _change(gateway: GatewayContext, request: Request, action: repository.Action) -> Response:
    limits = replace(gateway.limits, max_body_bytes=MAX_INDEX_BYTES)
    repository.check_body(action, await read_body(request, limits), limits)
    name = request.parameters["model"]
    await gateway.service.change(action, name)
    return json_response({"name": name, "state": "READY" if action == "load" else "UNAVAILABLE"})


async def stats_of_all(service: GatewayService) -> Response:
    ready = [entry.name for entry in await service.model_index() if entry.state == "READY"]
    answers = await asyncio.gather(*map(service.merged_stats, ready))
    return json_response(joined_stats(answers))


async def metrics(gateway: GatewayContext, request: Request) -> Response:
    is_open = request.wants_open_metrics
    return metrics_response(await gateway.service.metrics(is_open), is_open)


async def own_metrics(gateway: GatewayContext, request: Request) -> Response:
    is_open = request.wants_open_metrics
    return metrics_response(await gateway.service.own_metrics(is_open), is_open)


async def metrics_targets(gateway: GatewayContext, _: Request) -> Response:
    return json_response(await gateway.service.metrics_targets())


async def reload_tokens(gateway: GatewayContext, _: Request) -> Response:
    own = gateway.tokens
    if own is None:
        raise NotFound("this server asks for no tokens; its configuration has no auth.tokens_file")
    try:
        num_tokens = own.reload()
    except ConfigError as error:
        raise MalformedRequest(f"the old tokens stay: {error}") from None
    return json_response({"tokens": num_tokens, "replicas": 1 + await gateway.service.reload_tokens()})


def _openai(name: str) -> vllm.OpenAiModel:
    return vllm.OpenAiModel(id=name, created=_STARTED_AT)


def index_lines(entries: Sequence[ModelEntry], only_ready: bool) -> list[dict[str, str]]:
    """The body of the repository index, over HTTP and gRPC."""
    lines = [line for entry in entries for line in entry.lines]
    return [index_line(line) for line in lines if line.state == "READY" or not only_ready]


def index_line(entry: ModelEntry) -> dict[str, str]:
    return {"name": entry.name, "version": entry.version, "state": entry.state, "reason": entry.reason}


def _described(entry: ModelEntry) -> dict[str, str | None]:
    kind, task = (entry.info.kind, entry.info.task) if entry.info else (None, None)
    return {**index_line(entry), "kind": kind, "task": task}


def _wants_only_ready(body: bytes, limits: Limits) -> bool:
    if not body.strip():
        return False
    options = read_json(body, limits.max_json_depth)
    is_known = isinstance(options, dict) and not any(options[key] for key in options.keys() - {"ready"})
    wanted = given(options, "ready", False) if is_known else None
    if not isinstance(wanted, bool):
        raise MalformedRequest('the body must be empty or {"ready": true | false}')
    return wanted
