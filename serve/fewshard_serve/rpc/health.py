"""gRPC's health checking protocol, which load balancers, Kubernetes and clients ask; `server` adds it."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import suppress
from typing import Any

import grpc

from fewshard_serve.http.service import GatewayService
from fewshard_serve.rpc.messages import CLASSES, HEALTH, SERVICE

LOOK_AGAIN_S = 0.5
"""How often the state is read for a client that watches it; it is in memory."""


class Health:
    """Answers whether the server as a whole takes requests; that of the inference service is the same."""

    def __init__(self, service: GatewayService) -> None:
        self._service = service
        self._ended = asyncio.Event()

    def handler(self) -> grpc.GenericRpcHandler:
        """The handler to add to a gRPC server."""
        codecs = {
            "request_deserializer": CLASSES["HealthCheckRequest"].FromString,
            "response_serializer": CLASSES["HealthCheckResponse"].SerializeToString,
        }
        methods = {
            "Check": grpc.unary_unary_rpc_method_handler(self._check, **codecs),
            "Watch": grpc.unary_stream_rpc_method_handler(self._watch, **codecs),
        }
        return grpc.method_handlers_generic_handler(HEALTH, methods)

    def end(self) -> None:
        """Tell those that watch that the server ends, and let them go."""
        self._ended.set()

    async def _check(self, request: Any, context: Any) -> Any:
        if not _is_known(request.service):
            message = f"there is no service {request.service[:80]!r}; ask for '' or {SERVICE!r}"
            await context.abort(grpc.StatusCode.NOT_FOUND, message)
        return CLASSES["HealthCheckResponse"](status=await self._status())

    async def _watch(self, request: Any, _: Any) -> AsyncIterator[Any]:
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

    async def _status(self) -> str:
        is_ready = not self._ended.is_set() and await self._service.ready()
        return "SERVING" if is_ready else "NOT_SERVING"


def _is_known(service: str) -> bool:
    return service in ("", SERVICE)
