"""The ASGI application at `/`: the server as a whole. The Ray shell mounts one beside the hosts."""

from collections.abc import Awaitable, Callable, Sequence

from fewshard_core.values import ModelInfo
from fewshard_serve import __version__
from fewshard_serve.errors import ConfigError, MalformedRequest, NotFound, NotReady, UnknownModel
from fewshard_serve.http import handlers as handlers_module
from fewshard_serve.http.asgi import App, for_method, while_connected
from fewshard_serve.http.host import PREFIX, parse_target
from fewshard_serve.http.middleware import AccessMiddleware, wants_page
from fewshard_serve.http.openapi import openapi_document
from fewshard_serve.http.request import Request, read_body
from fewshard_serve.http.responses import (
    Response,
    error_response,
    html_response,
    json_response,
    metrics_response,
)
from fewshard_serve.http.service import (
    EXTENSIONS,
    GatewayService,
    ModelEntry,
    RequestHook,
    find_ready,
    ignore_request,
    why_not,
)
from fewshard_serve.http.static import console_files, docs_page
from fewshard_serve.protocol.json_guard import read_json
from fewshard_serve.protocol.limits import Limits


class GatewayApp(App):
    """Answers for all hosts."""

    def __init__(
        self,
        service: GatewayService,
        *,
        limits: Limits = Limits(),  # noqa: B008  it is frozen
        doors: AccessMiddleware | None = None,
        on_request: RequestHook = ignore_request,
    ) -> None:
        super().__init__(doors, on_request)
        self._service = service
        self._limits = limits
        self._openapi = openapi_document(limits)
        self._docs = docs_page(self._openapi)
        self._console = console_files()

    async def respond(self, request: Request) -> Response:
        path = request.path.rstrip("/") or "/"
        handlers = _ROUTES.get(path)
        if handlers is not None:
            return await for_method(handlers, request)(self, request)
        if path in self._console:
            return for_method({"GET": self._console[path]}, request)
        if path.startswith(f"{PREFIX}/"):
            raise await self._why_no_host(path)
        raise NotFound(f"there is no {request.path}; GET /docs lists what there is")

    async def _why_no_host(self, path: str) -> NotReady | UnknownModel:
        """A path of a model comes here only when no host is mounted for it."""
        return why_not(parse_target(path).model, await self._service.model_index())

    async def _home(self, request: Request) -> Response:
        if wants_page(request):
            return self._console["/"]
        models = [_described(entry) for entry in await self._service.model_index()]
        return json_response({"name": "fewshard", "version": __version__, "models": models})

    async def _server_metadata(self, _: Request) -> Response:
        return json_response({"name": "fewshard", "version": __version__, "extensions": EXTENSIONS})

    async def _live(self, _: Request) -> Response:
        return json_response({"live": True})

    async def _ready(self, _: Request) -> Response:
        if await self._service.ready():
            return json_response({"ready": True})
        index = await self._service.model_index()
        waiting = ", ".join(entry.name for entry in index if entry.state != "READY") or "the server"
        return error_response(NotReady(f"not ready yet: {waiting}; try again soon"), ready=False)

    async def _index(self, request: Request) -> Response:
        only_ready = _wants_only_ready(await read_body(request, self._limits), self._limits)
        index = await self._service.model_index()
        return json_response([_index_line(e) for e in index if e.state == "READY" or not only_ready])

    async def _metrics(self, request: Request) -> Response:
        is_open = request.wants_open_metrics
        return metrics_response(await self._service.metrics(is_open), is_open)

    async def _own_metrics(self, request: Request) -> Response:
        is_open = request.wants_open_metrics
        return metrics_response(await self._service.own_metrics(is_open), is_open)

    async def _metrics_targets(self, _: Request) -> Response:
        return json_response(await self._service.metrics_targets())

    async def _reload_tokens(self, _: Request) -> Response:
        own = self._doors.tokens
        if own is None:
            raise NotFound("this server asks for no tokens; its configuration has no auth.tokens_file")
        try:
            num_tokens = own.reload()
        except ConfigError as error:
            raise MalformedRequest(f"the old tokens stay: {error}") from None
        return json_response({"tokens": num_tokens, "replicas": 1 + await self._service.reload_tokens()})

    async def _openapi_json(self, _: Request) -> Response:
        return json_response(self._openapi)

    async def _docs_html(self, _: Request) -> Response:
        return html_response(self._docs)

    async def _classify(self, request: Request) -> Response:
        return await self._answer_question(
            request, await handlers_module.read_unrouted_classify(request, self._limits)
        )

    async def _predict(self, request: Request) -> Response:
        return await self._answer_question(request, await handlers_module.read_predict(request, self._limits))

    async def _vllm_classify(self, request: Request) -> Response:
        return await self._answer_question(request, await handlers_module.read_vllm(request, self._limits))

    async def _answer_question(self, request: Request, question: handlers_module.UnroutedRequest) -> Response:
        info = await self._find(request, question.model)
        job = await question.job(request, info, self._limits)
        work = self._service.classify(
            info.name, job.inputs, truncate=job.truncate, timeout_s=job.timeout_s, caller=request.caller
        )
        answer = await while_connected(request, work)
        request.note_answer(answer.timings)
        return await handlers_module.encode(job, answer)

    async def _find(self, request: Request, model: str | None) -> ModelInfo:
        """A model that takes requests; the only one of a server that has but one where none is named."""
        index = await self._service.model_index()
        if model is None:
            model = _only_one(index)
        info = find_ready(index, model)
        request.model_name = model
        return info


def _only_one(index: Sequence[ModelEntry]) -> str:
    if len(index) == 1:
        return index[0].name
    names = ", ".join(sorted(entry.name for entry in index)) or "none"
    raise MalformedRequest(f"name a model: `model` in the body; there are: {names}")


def _index_line(entry: ModelEntry) -> dict[str, str]:
    return {"name": entry.name, "version": entry.version, "state": entry.state, "reason": entry.reason}


def _described(entry: ModelEntry) -> dict[str, str | None]:
    kind, task = (entry.info.kind, entry.info.task) if entry.info else (None, None)
    return {**_index_line(entry), "kind": kind, "task": task}


def _wants_only_ready(body: bytes, limits: Limits) -> bool:
    if not body.strip():
        return False
    options = read_json(body, limits.max_json_depth)
    wanted = options.get("ready", False) if isinstance(options, dict) else None
    if not isinstance(wanted, bool):
        raise MalformedRequest('the body must be empty or {"ready": true | false}')
    return wanted


_ROUTES: dict[str, dict[str, Callable[[GatewayApp, Request], Awaitable[Response]]]] = {
    "/": {"GET": GatewayApp._home},
    "/v2": {"GET": GatewayApp._server_metadata},
    "/v2/health/live": {"GET": GatewayApp._live},
    "/v2/health/ready": {"GET": GatewayApp._ready},
    "/v2/repository/index": {"POST": GatewayApp._index},
    "/classify": {"POST": GatewayApp._classify},
    "/predict": {"POST": GatewayApp._predict},
    "/v1/classify": {"POST": GatewayApp._vllm_classify},
    "/v2/tokens/reload": {"POST": GatewayApp._reload_tokens},
    "/metrics": {"GET": GatewayApp._metrics},
    "/metrics/gateway": {"GET": GatewayApp._own_metrics},
    "/metrics/targets": {"GET": GatewayApp._metrics_targets},
    "/openapi.json": {"GET": GatewayApp._openapi_json},
    "/docs": {"GET": GatewayApp._docs_html},
}
