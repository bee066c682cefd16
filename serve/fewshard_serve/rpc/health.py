"""gRPC's health checking protocol, which load balancers, Kubernetes and clients ask; `server` adds it."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import suppress
from typing import Any

import grpc

from fewshard_serve.core import ANYBODY
from fewshard_serve.errors import ServeError
from fewshard_serve.http.service import GatewayService
from fewshard_serve.rpc.messages import CLASSES, HEALTH, SERVICE
from fewshard_serve.rpc.reading import MessageReader, alone

LOOK_AGAIN_S = 0.5
"""How often the state is read for a client that watches it; it is in memory."""


class Health:
    """Answers whether the server as a whole takes requests; that of the inference service is the same."""

    def __init__(self, service: GatewayService, reader: MessageReader) -> None:
        self._service = service
        self._reader = reader
        self._ended = asyncio.Event()

    def handler(self) -> grpc.GenericRpcHandler:
        """The handler to add to a gRPC server."""
        codec = {"response_serializer": CLASSES["HealthCheckResponse"].SerializeToString}
        methods = {  # as streams of one message, for the reason that `inference` gives
            "Check": grpc.stream_unary_rpc_method_handler(self._check, **codec),
            "Watch": grpc.stream_stream_rpc_method_handler(self._watch, **codec),
        }
        return grpc.method_handlers_generic_handler(HEALTH, methods)

    def end(self) -> None:
        """Tell those that watch that the server ends, and let them go."""
        self._ended.set()

    async def _check(self, _: Any, context: Any) -> Any:
        request = await self._asked(context)
        if not _is_known(request.service):
            message = f"there is no service {request.service[:80]!r}; ask for '' or {SERVICE!r}"
            await context.abort(grpc.StatusCode.NOT_FOUND, message)
        return CLASSES["HealthCheckResponse"](status=await self._status())

    async def _watch(self, _: Any, context: Any) -> AsyncIterator[Any]:
        request = await self._asked(context)
        told = None
        while True:
            is_last = self._ended.is_set()
            status = await self._status() if _is_known(request.service) else "SERVICE_UNKNOWN"
            if status != told:
                told = status
                yield CLASSES["HealthCheckResponse"](status=status)
            if is_last:
                return
            with suppress(TimeoutError):
                await asyncio.wait_for(self._ended.wait(), LOOK_AGAIN_S)

    async def _asked(self, context: Any) -> Any:
        try:
            with self._reader.reading(context, ANYBODY) as reading:
                return await reading.message(CLASSES["HealthCheckRequest"])
        except ServeError as raised:
            error = alone(raised)
        return await context.abort(grpc.StatusCode.INVALID_ARGUMENT, str(error))

    async def _status(self) -> str:
        is_ready = not self._ended.is_set() and await self._service.ready()
        return "SERVING" if is_ready else "NOT_SERVING"


def _is_known(service: str) -> bool:
    return service in ("", SERVICE)
