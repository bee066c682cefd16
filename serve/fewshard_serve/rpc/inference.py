"""Answers the calls of the Open Inference Protocol's gRPC service, and says the gRPC status of each error.

`server` listens for them. Service, access checks, limits and metrics are those of the HTTP application.
"""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import grpc
from grpc import StatusCode

from fewshard_core.values import ModelInfo
from fewshard_serve import __version__, errors
from fewshard_serve.auth import Scope
from fewshard_serve.core import Caller, PredictionRequest
from fewshard_serve.errors import (
    CallerGone,
    ModelUnloaded,
    NotFound,
    NotReady,
    Overloaded,
    ServeError,
)
from fewshard_serve.http.large_bodies import LargeBodies
from fewshard_serve.http.middleware import AccessMiddleware
from fewshard_serve.http.prediction_handlers import check_finite
from fewshard_serve.http.prediction_readers import infer_inputs
from fewshard_serve.http.responses import message_of, unforeseen
from fewshard_serve.http.server_handlers import index_lines
from fewshard_serve.http.service import (
    EXTENSIONS,
    GatewayService,
    RequestHook,
    find_ready,
    find_version,
    ignore_request,
    joined_stats,
)
from fewshard_serve.http.versions import SPLIT_HEADER, key_of
from fewshard_serve.protocol import model_tensors, repository
from fewshard_serve.protocol.limits import Limits
from fewshard_serve.rpc import convert
from fewshard_serve.rpc.health import Health
from fewshard_serve.rpc.messages import CLASSES, METHODS, SERVICE
from fewshard_serve.rpc.reading import MessageReader, address_of, alone
from fewshard_serve.tracecontext import read_traceparent

GRPC_STATUS: dict[type[ServeError], StatusCode] = {
    errors.MalformedRequest: StatusCode.INVALID_ARGUMENT,
    errors.Unauthorized: StatusCode.UNAUTHENTICATED,
    errors.Forbidden: StatusCode.PERMISSION_DENIED,
    errors.UnknownModel: StatusCode.NOT_FOUND,
    errors.NotFound: StatusCode.NOT_FOUND,
    errors.MethodNotAllowed: StatusCode.UNIMPLEMENTED,
    errors.DeadlineExceeded: StatusCode.DEADLINE_EXCEEDED,
    # Not RESOURCE_EXHAUSTED, which clients may retry.
    errors.TooLarge: StatusCode.INVALID_ARGUMENT,
    errors.UnsupportedMedia: StatusCode.INVALID_ARGUMENT,
    errors.UnusableItem: StatusCode.INVALID_ARGUMENT,
    errors.Overloaded: StatusCode.RESOURCE_EXHAUSTED,
    errors.CallerGone: StatusCode.CANCELLED,
    errors.ChangeRefused: StatusCode.FAILED_PRECONDITION,
    errors.InternalError: StatusCode.INTERNAL,
    errors.NotReady: StatusCode.UNAVAILABLE,
}


def status_of(error: ServeError) -> StatusCode:
    """The status of the error's class, or of its nearest base class that has one."""
    kinds = (GRPC_STATUS[kind] for kind in type(error).__mro__ if kind in GRPC_STATUS)
    return next(kinds, StatusCode.INTERNAL)


OPEN_METHODS = frozenset({"ServerLive", "ServerReady"})
SCOPES: Mapping[str, Scope] = {
    "ModelInfer": "predict",
    "RepositoryModelLoad": "admin",
    "RepositoryModelUnload": "admin",
}
"""The scopes that methods need of a token; for the others any token will do."""

_logger = logging.getLogger("fewshard.rpc")


class Call:
    """One call: its message (once it is read), its caller, its model and its start time."""

    def __init__(self, method: str, context: Any) -> None:
        self.method = method
        self.message: Any = None
        self.context = context
        self.started_at = time.monotonic()
        pairs = context.invocation_metadata() or ()
        self.metadata = dict(pairs)
        self.forwarded = [value for name, value in pairs if name == "x-forwarded-for"]
        self.caller = Caller()
        self.model_name = "unknown"

    @property
    def elapsed_s(self) -> float:
        return time.monotonic() - self.started_at

    def timeout_s(self, asked_s: float | None) -> float | None:
        """The shorter of the call's deadline and the request's, in seconds; None if there is neither."""
        limits_s = [limit for limit in (self.context.time_remaining(), asked_s) if limit is not None]
        return min(limits_s) if limits_s else None


class InferenceService:
    """Answers calls. An error is sent as status and message, with its `code` in the trailing metadata."""

    def __init__(
        self,
        service: GatewayService,
        limits: Limits,
        access: AccessMiddleware,
        on_request: RequestHook = ignore_request,
        bodies: LargeBodies | None = None,
    ) -> None:
        """`bodies`: the large bodies of the process; by default those of this service alone."""
        self.reader = MessageReader(limits, bodies or LargeBodies(limits))
        self._service = service
        self._limits = limits
        self._access = access
        self._on_request = on_request
        self.health = Health(service, self.reader)

    def handler(self) -> grpc.GenericRpcHandler:
        """The handler to add to a gRPC server.

        A call with one message and one with a stream of them begin alike. As the latter, they are ours before
        the message is received: a caller who is refused cannot make us hold it.
        """
        answers = self._answers()
        handlers = {
            method: grpc.stream_unary_rpc_method_handler(
                self._answering(method, answers[method]),
                response_serializer=CLASSES[f"{method}Response"].SerializeToString,
            )
            for method in METHODS
        }
        return grpc.method_handlers_generic_handler(SERVICE, handlers)

    def _answers(self) -> dict[str, Callable[[Call], Awaitable[Any]]]:
        return {
            "ServerLive": self._live,
            "ServerReady": self._ready,
            "ModelReady": self._model_ready,
            "ServerMetadata": self._server_metadata,
            "ModelMetadata": self._model_metadata,
            "ModelInfer": self._infer,
            "ModelConfig": self._config,
            "ModelStatistics": self._statistics,
            "RepositoryIndex": self._index,
            "RepositoryModelLoad": partial(self._change, "load"),
            "RepositoryModelUnload": partial(self._change, "unload"),
        }

    def _answering(
        self, method: str, answer: Callable[[Call], Awaitable[Any]]
    ) -> Callable[..., Awaitable[Any]]:
        async def handle(_: Any, context: Any) -> Any:
            call = Call(method, context)
            parent = read_traceparent(call.metadata.get("traceparent"))
            request_id = self._access.identify(call.metadata.get("x-request-id"), parent)
            await context.send_initial_metadata((("x-request-id", request_id),))
            return await self._counted(call, answer)

        return handle

    async def _counted(self, call: Call, answer: Callable[[Call], Awaitable[Any]]) -> Any:
        try:
            response = await self._entered(call, answer)
        except ServeError as raised:
            error = alone(raised)
        except BaseException:  # the client has cancelled the call
            self._note(call, CallerGone.code, grpc.StatusCode.CANCELLED)
            raise
        else:
            self._note(call, "ok", grpc.StatusCode.OK)
            return response
        self._note(call, error.code, status_of(error))
        status, details = status_of(error), _details(error)
        return await call.context.abort(status, message_of(error), trailing_metadata=details)

    async def _entered(self, call: Call, answer: Callable[[Call], Awaitable[Any]]) -> Any:
        try:
            if call.method not in OPEN_METHODS:
                call.caller = self._access.admit(
                    call.metadata.get("authorization"),
                    call.metadata.get("x-request-priority"),
                    self._access.caller_behind(address_of(call.context), call.forwarded),
                    SCOPES.get(call.method),
                )
            with self.reader.reading(call.context, call.caller) as reading:
                call.message = await reading.message(CLASSES[f"{call.method}Request"])
                return await answer(call)
        except ServeError:
            raise
        except Exception as error:
            _logger.exception("%s failed", call.method)
            raise unforeseen() from error
        finally:
            call.message = None

    def _note(self, call: Call, outcome: str, status: grpc.StatusCode) -> None:
        if call.method == "ModelInfer":
            self._on_request(call.model_name, "v2_grpc", outcome, call.elapsed_s)
        path = f"/{SERVICE}/{call.method}"
        self._access.log("GRPC", path, status.name, call.elapsed_s, call.model_name, call.caller.name)

    async def _live(self, _: Call) -> Any:
        return CLASSES["ServerLiveResponse"](live=True)

    async def _ready(self, _: Call) -> Any:
        return CLASSES["ServerReadyResponse"](ready=await self._service.ready())

    async def _model_ready(self, call: Call) -> Any:
        try:
            await self._find(call, call.message.name, call.message.version)
        except (NotReady, ModelUnloaded):
            return CLASSES["ModelReadyResponse"](ready=False)
        return CLASSES["ModelReadyResponse"](ready=True)

    async def _server_metadata(self, _: Call) -> Any:
        return CLASSES["ServerMetadataResponse"](name="fewshard", version=__version__, extensions=EXTENSIONS)

    async def _model_metadata(self, call: Call) -> Any:
        name, version = call.message.name, call.message.version
        info = await self._find(call, name, version)
        entry = find_version(await self._service.model_index(), name, version)
        versions = [info.version] if entry is None else [each.version for each in entry.lines]
        return convert.to_metadata(info, versions)

    async def _config(self, call: Call) -> Any:
        info = await self._find(call, call.message.name, call.message.version)
        return CLASSES["ModelConfigResponse"](config=model_tensors.triton_config(info, self._limits))

    async def _statistics(self, call: Call) -> Any:
        names = [call.message.name]
        if call.message.name:
            names = [(await self._resolve(call, call.message.name, call.message.version))[0]]
        else:
            index = await self._service.model_index()
            names = [entry.name for entry in index if entry.state == "READY"]
        answers = await asyncio.gather(*map(self._service.merged_stats, names))
        return CLASSES["ModelStatisticsResponse"](model_stats=joined_stats(answers)["model_stats"])

    async def _change(self, action: repository.Action, call: Call) -> Any:
        _check_repository(call)
        given = {
            name: getattr(value, value.WhichOneof("parameter_choice") or "", None)
            for name, value in call.message.parameters.items()
        }
        repository.check_parameters(action, given)
        await self._service.change(action, call.message.model_name)
        return CLASSES[f"{call.method}Response"]()

    async def _index(self, call: Call) -> Any:
        _check_repository(call)
        entries = await self._service.model_index()
        return CLASSES["RepositoryIndexResponse"](models=index_lines(entries, call.message.ready))

    async def _infer(self, call: Call) -> Any:
        key, info = await self._resolve(call, call.message.model_name, call.message.model_version)
        expected = model_tensors.expected(info, self._limits)
        request = convert.to_request(call.message, expected)
        inputs = infer_inputs(request, info, self._limits)
        timeout_s = call.timeout_s(request.timeout_s)
        split_key = call.metadata.get(SPLIT_HEADER.decode(), "")
        asked = PredictionRequest(inputs, request.truncate, timeout_s, call.caller, split_key=split_key)
        answer = await self._service.classify(key, asked)
        check_finite(answer)
        return convert.to_response(request, replace(info, version=answer.version or info.version), answer)

    async def _find(self, call: Call, name: str, version: str) -> ModelInfo:
        return (await self._resolve(call, name, version))[1]

    async def _resolve(self, call: Call, name: str, version: str) -> tuple[str, ModelInfo]:
        """The key of a model, or of its version, for the service, and its description."""
        index = await self._service.model_index()
        info = find_ready(index, name, version)
        call.model_name = name
        is_listed = any(entry.name == name and entry.versions for entry in index)
        return key_of(name, version if is_listed else ""), info


def _check_repository(call: Call) -> None:
    if call.message.repository_name:
        raise NotFound("there is one repository, which has no name; leave repository_name out")


def _details(error: ServeError) -> tuple[tuple[str, str], ...]:
    code = (("code", error.code),)
    return (*code, ("retry-after", f"{error.retry_after_s:.3f}")) if isinstance(error, Overloaded) else code
