"""Listens for gRPC: inference, health and reflection. `rayserve.gateway` starts it beside HTTP."""

from typing import Any

import grpc

from fewshard_serve.errors import StartError
from fewshard_serve.rpc import reflection
from fewshard_serve.rpc.health import Health
from fewshard_serve.rpc.inference import InferenceService
from fewshard_serve.rpc.messages import METHODS, SERVICE

MIN_PING_INTERVAL_S = 5
"""Clients keep a connection alive by pings, often every 10 or 20 s. By default gRPC ends one whose pings come
more often than every 5 minutes."""

MAX_CALLS = 4096
MAX_CALLS_OF_ONE_CONNECTION = 1024
MAX_CONNECTIONS = 4096
MAX_IDLE_S = 90
"""A connection without calls is ended after this time; its client opens another with its next call."""
HANDSHAKE_S = 10


class UnknownMethods(grpc.GenericRpcHandler):
    """Refuses the methods of Triton's service that are not offered, of whichever kind, and says which are."""

    def service(self, details: Any) -> Any:
        if not details.method.startswith(f"/{SERVICE}/"):
            return None
        return grpc.stream_stream_rpc_method_handler(self._refuse)

    async def _refuse(self, _: Any, context: Any) -> None:
        message = f"this method is not offered here; there are: {', '.join(METHODS)}"
        await context.abort(
            grpc.StatusCode.UNIMPLEMENTED, message, trailing_metadata=(("code", "not_found"),)
        )


class Server:
    """A running gRPC server."""

    def __init__(self, server: grpc.aio.Server, health: Health) -> None:
        self._server = server
        self._health = health

    async def stop(self, grace_s: float | None) -> None:
        """Refuse new calls, and answer the others for `grace_s` seconds at most. Who watches is let go."""
        self._health.end()
        await self._server.stop(grace_s)


async def start(
    service: InferenceService,
    host: str,
    port: int,
    max_message_bytes: int,
    credentials: grpc.ServerCredentials | None = None,
) -> Server:
    """Start a gRPC server on the running event loop. Raises `StartError` if it cannot listen there.

    credentials: for TLS; None for none.
    """
    options = [
        ("grpc.max_receive_message_length", max_message_bytes),
        ("grpc.max_send_message_length", -1),
        ("grpc.so_reuseport", 0),  # a second server on the port must fail, not share it
        ("grpc.keepalive_permit_without_calls", 1),
        # The name of GRPC_ARG_HTTP2_MIN_RECV_PING_INTERVAL_WITHOUT_DATA_MS; unknown options are ignored.
        ("grpc.http2.min_ping_interval_without_data_ms", MIN_PING_INTERVAL_S * 1000),
        ("grpc.max_concurrent_streams", MAX_CALLS_OF_ONE_CONNECTION),
        ("grpc.max_allowed_incoming_connections", MAX_CONNECTIONS),
        ("grpc.max_connection_idle_ms", int(MAX_IDLE_S * 1000)),
        ("grpc.server_handshake_timeout_ms", HANDSHAKE_S * 1000),
    ]
    server = grpc.aio.server(options=options, maximum_concurrent_rpcs=MAX_CALLS)
    handlers = (
        service.handler(),
        service.health.handler(),
        *reflection.handlers(service.reader),
        UnknownMethods(),
    )
    server.add_generic_rpc_handlers(handlers)
    try:
        address = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        if credentials is None:
            server.add_insecure_port(address)
        else:
            server.add_secure_port(address, credentials)
    except RuntimeError as error:
        raise StartError(
            f"gRPC cannot listen on {host}:{port} ({error}); choose another with --grpc-port"
        ) from error
    await server.start()
    return Server(server, service.health)
