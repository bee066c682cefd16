"""The ASGI application of a host: everything under `/v2/models`. The Ray shell mounts one in each replica."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import asdict, dataclass, replace
from typing import Any

from fewshard_core.values import ModelInfo
from fewshard_serve.errors import NotFound, NotReady, Overloaded
from fewshard_serve.http import handlers
from fewshard_serve.http.asgi import App, for_method, while_connected
from fewshard_serve.http.backpressure import REFUSED_HEADER, refused_before, room_header
from fewshard_serve.http.middleware import AccessMiddleware
from fewshard_serve.http.request import LARGE_BYTES, Request, off_loop, read_body
from fewshard_serve.http.responses import Response, error_response, json_response, metrics_response
from fewshard_serve.http.service import HostService, RequestHook, ServedModel, find_model, ignore_request
from fewshard_serve.protocol import model_tensors
from fewshard_serve.protocol.limits import Limits
from fewshard_serve.protocol.placement import parse_placement

PREFIX = "/v2/models"

ReadJob = Callable[[Request, ModelInfo, Limits], Awaitable[handlers.PredictionRequest]]


@dataclass(frozen=True, slots=True)
class Target:
    """What a path below `/v2/models` points at. Empty parts are absent ones."""

    model: str
    version: str
    action: str


def parse_target(path: str) -> Target:
    """Read `…/v2/models/<model>[/versions/<version>][/<action>]`. Raises `NotFound` for other forms."""
    parts = path.partition(PREFIX)[2].removeprefix("/").removesuffix("/").split("/")
    version = ""
    if len(parts) > 2 and parts[1] == "versions":
        version = parts[2]
        del parts[1:3]
    if len(parts) > 2 or not parts[0]:
        raise NotFound(
            f"there is no {path}; models are at {PREFIX}/<name>, their list at POST /v2/repository/index"
        )
    return Target(parts[0], version, parts[1] if len(parts) == 2 else "")


class HostApp(App):
    """Serves the models of one replica."""

    def __init__(
        self,
        service: HostService,
        *,
        limits: Limits = Limits(),  # noqa: B008  it is frozen
        doors: AccessMiddleware | None = None,
        on_request: RequestHook = ignore_request,
    ) -> None:
        super().__init__(doors, on_request)
        self._service = service
        self._limits = limits

    async def _answer(self, request: Request) -> Response:
        if not self._doors.is_behind_haproxy:
            return await super()._answer(request)
        model = self._service.models().get(_model_in(request.path))
        if model is None or model.room is None:
            return await super()._answer(request)
        self._count_refused(request, model)
        response = await super()._answer(request)
        request.answer_headers = (room_header(model.room),)
        return response

    def _count_refused(self, request: Request, model: ServedModel) -> None:
        """Those that HAProxy has refused for the model, since it last passed one on."""
        refused = list(refused_before(request.headers.get(REFUSED_HEADER)))
        for protocol in refused:
            model.stats.add_failure(0.0)
            self._on_request(model.info.name, protocol, Overloaded.code, 0.0)
        if refused and model.room is not None:
            model.room.note_refusals()

    async def respond(self, request: Request) -> Response:
        target = parse_target(request.path)
        if not target.action and target.model in _HOST_PAGES:
            return await for_method(_HOST_PAGES[target.model], request)(self, request)
        if target.action in _PREDICTIONS:
            read = for_method({"POST": _PREDICTIONS[target.action]}, request)
            return await self._predict(request, target, read)
        if target.action in _ORDERS:
            order = for_method(_ORDERS[target.action], request)
            return await order(self, request, self._find(request, target))
        if target.action not in _PAGES:
            raise NotFound(f"a model has no {target.action!r}; it has {', '.join(sorted(_KNOWN_ACTIONS))}")
        page = for_method(_PAGES[target.action], request)
        return await page(self, self._find(request, target))

    def _find(self, request: Request, target: Target) -> ServedModel:
        model = find_model(self._service.models(), target.model)
        request.model_name = target.model
        if target.version not in ("", model.info.version):
            raise NotFound(f"{target.model} has no version {target.version!r}; it has {model.info.version!r}")
        return model

    async def _predict(self, request: Request, target: Target, read: ReadJob) -> Response:
        model = self._find(request, target)
        try:
            return await self._read_run_encode(request, model, read)
        except BaseException:
            model.stats.add_failure(request.elapsed_s)
            raise

    async def _read_run_encode(self, request: Request, model: ServedModel, read: ReadJob) -> Response:
        if not model.ready:
            raise _not_ready(model)
        refuse_early(request, model)
        job = await read(request, model.info, self._limits)
        caller = replace(request.caller, is_probing=True) if job.is_probing else request.caller
        work = model.classify(job.inputs, truncate=job.truncate, timeout_s=job.timeout_s, caller=caller)
        answer = await while_connected(request, work)
        request.note_answer(answer.timings)
        response = await handlers.encode(job, answer)
        encode_s = time.monotonic() - request.answered_at
        model.stats.add_request(request.elapsed_s, answer.timings, encode_s)
        return response

    async def _metadata(self, model: ServedModel) -> Response:
        return json_response(model_tensors.metadata(model.info))

    async def _ready(self, model: ServedModel) -> Response:
        name = model.info.name
        if not model.ready:
            return error_response(_not_ready(model), name=name, ready=False)
        return json_response({"name": name, "ready": True})

    async def _stats(self, model: ServedModel) -> Response:
        return json_response(await self._service.merged_stats(model.info.name))

    async def _config(self, model: ServedModel) -> Response:
        return json_response(describe(model.info, self._limits))

    async def _experts(self, model: ServedModel) -> Response:
        experts = await self._service.merged_experts(model.info.name)
        if experts is None:
            raise NotFound(f"{model.info.name} has no experts; its kind is {model.info.kind}")
        return json_response(experts)

    async def _placement(self, request: Request, model: ServedModel) -> Response:
        body = await read_body(request, self._limits)
        wanted = await off_loop(len(body), parse_placement, body, self._limits)
        fields = wanted.model_dump(exclude_none=True)
        return json_response(await self._service.place(model.info.name, fields))

    async def _all_stats(self, _: Request) -> Response:
        answers = await asyncio.gather(*map(self._service.merged_stats, self._service.models()))
        entries = [entry for answer in answers for entry in answer["model_stats"]]
        return json_response(
            {"model_stats": entries, "replicas": max((each["replicas"] for each in answers), default=1)}
        )

    async def _metrics(self, request: Request, _: ServedModel | None = None) -> Response:
        is_open = request.wants_open_metrics
        return metrics_response(await self._service.metrics_text(is_open), is_open)


def _model_in(path: str) -> str:
    """The name of a model in a path below `/v2/models`, or what stands in its place."""
    return path.removeprefix(f"{PREFIX}/").partition("/")[0]


def describe(info: ModelInfo, limits: Limits) -> dict[str, Any]:
    """The body of `GET …/config`: what the model is, what it takes, how much of it, and its card."""
    return {**asdict(info), "inputs": model_tensors.input_tensors(info), "limits": asdict(limits)}


def refuse_early(request: Request, model: ServedModel) -> None:
    """Raise `Overloaded` before the body is read where there is no room at all."""
    try:
        model.check_room(request.caller)
    except Overloaded:
        # A small body has come with the headers and costs nothing; a large one should not be sent to its end.
        length = request.headers.get(b"content-length", b"")
        request.is_body_abandoned = not length.isdigit() or int(length[:18]) > LARGE_BYTES
        raise


def _not_ready(model: ServedModel) -> NotReady:
    return NotReady(f"{model.info.name} is not ready: {model.not_ready_reason or 'try again soon'}")


async def _read_predict(request: Request, info: ModelInfo, limits: Limits) -> handlers.PredictionRequest:
    question = await handlers.read_predict(request, limits)
    return await question.job(request, info, limits)


_PREDICTIONS: dict[str, ReadJob] = {
    "infer": handlers.read_infer,
    "classify": handlers.read_classify,
    "predict": _read_predict,
    "explain": handlers.read_explain,
}

_PAGES: dict[str, dict[str, Callable[[HostApp, ServedModel], Awaitable[Response]]]] = {
    "": {"GET": HostApp._metadata},
    "ready": {"GET": HostApp._ready},
    "stats": {"GET": HostApp._stats},
    "config": {"GET": HostApp._config},
    "experts": {"GET": HostApp._experts},
}

# What needs the request too; POST is for administrators alone (`doors.needed_scope`).
_ORDERS: dict[str, dict[str, Callable[[HostApp, Request, ServedModel], Awaitable[Response]]]] = {
    "metrics": {"GET": HostApp._metrics},
    "placement": {"POST": HostApp._placement},
}

_HOST_PAGES: dict[str, dict[str, Callable[[HostApp, Request], Awaitable[Response]]]] = {
    "stats": {"GET": HostApp._all_stats},
    "metrics": {"GET": HostApp._metrics},
}

_KNOWN_ACTIONS = {*_PREDICTIONS, *_PAGES, *_ORDERS} - {""}
