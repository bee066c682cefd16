"""The Ray Serve deployment at `/`: a `ModelRouter` in one small replica. It never imports torch."""

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import grpc
import ray
from ray import serve

from fewshard_serve.config import ServerConfig, TlsConfig
from fewshard_serve.http.gateway import GatewayApp
from fewshard_serve.http.large_bodies import LargeBodies
from fewshard_serve.http.middleware import AccessMiddleware, AccessSettings
from fewshard_serve.http.service import ModelEntry
from fewshard_serve.memory import give_back_freed
from fewshard_serve.metrics import Metrics
from fewshard_serve.rayserve.actor_process import (
    RAY_LOGGING,
    CountedApp,
    configure_logging,
    freeze_loaded,
    print_to,
)
from fewshard_serve.rayserve.deployment import DEPLOYMENT, MAX_ONGOING_REQUESTS, SURGE_PERCENT
from fewshard_serve.rayserve.deployment_plan import GATEWAY_CPUS, AppSpec
from fewshard_serve.rayserve.discovery import find_targets
from fewshard_serve.rayserve.handles import HandleCalls
from fewshard_serve.rayserve.model_changes import ModelChange
from fewshard_serve.rayserve.model_router import ModelRouter
from fewshard_serve.rayserve.resource_shares import what_is_missing
from fewshard_serve.rpc.inference import InferenceService
from fewshard_serve.rpc.server import start


class Gateway:
    """The replica at `/`."""

    def __init__(
        self, hosts: list[AppSpec], drain_timeout_s: float, doors: AccessSettings, server: ServerConfig
    ) -> None:
        print_to(doors.log_path)
        configure_logging(doors.logs, doors.log_path)
        self._access_settings = doors
        self._server = server
        self._rpc: Any = None
        context = serve.get_replica_context()
        labels = {"application": context.app_name, "replica": context.replica_tag}
        self._metrics = Metrics(hosts[0].metrics)
        calls = HandleCalls(DEPLOYMENT)
        self._router = ModelRouter(hosts, calls, self._metrics, labels, _why_waiting, find_targets)
        self._drain_timeout_s = drain_timeout_s
        self._revision = 0

    async def __serve_build_asgi_app__(self) -> CountedApp:
        """Build the application. Ray Serve calls it once, on the event loop that will serve it."""
        self._refreshing = asyncio.create_task(self._router.keep_fresh())
        # Ray Serve adds X-Request-Id to the response itself.
        doors = AccessMiddleware(self._access_settings, echoes_id=False)
        limits, count = self._access_settings.limits, self._metrics.observe_request
        bodies = LargeBodies(limits)
        app = GatewayApp(self._router, limits=limits, doors=doors, bodies=bodies, on_request=count)
        self._app = CountedApp(app)
        if self._server.grpc_port:
            service = InferenceService(self._router, limits, doors, count, bodies)
            host, port, tls = self._server.host, self._server.grpc_port, self._server.tls
            credentials = None if tls is None else _credentials(tls)
            self._rpc = await start(service, host, port, limits.max_body_bytes, credentials)
        freeze_loaded()
        give_back_freed()
        return self._app

    async def check_health(self) -> None:
        if self._refreshing.done():
            raise RuntimeError("the index is refreshed no more") from self._refreshing.exception()

    async def index(self) -> list[ModelEntry]:
        """Return the state of every model, as `POST /v2/repository/index` does."""
        self._router.changes.hear()  # the launcher alone asks so
        return list(await self._router.model_index())

    async def show(self, revision: int, hosts: list[AppSpec], unloaded: list[str]) -> None:
        """Serve the models of these applications from now on. `revision` numbers what the launcher shows."""
        await self._router.show(hosts, unloaded)
        self._drain_timeout_s = max(host.drain_timeout_s for host in hosts)
        self._revision = revision

    async def next_changes(self, revision: int) -> Sequence[ModelChange] | None:
        """Return the changes that requests ask for; None if this gateway has not been shown `revision`."""
        return await self._router.changes.next() if revision == self._revision else None

    async def finish_change(self, number: int, why_not: str) -> None:
        """Answer who has asked for a change."""
        self._router.changes.finish(number, why_not)

    async def begin_drain(self) -> None:
        """Refuse new requests. Requests in progress continue."""
        self._router.begin_drain()

    async def finish_drain(self) -> bool:
        """Wait until all requests are answered. Return False on time-out."""
        if self._rpc is not None:
            await self._rpc.stop(self._drain_timeout_s)
        return await self._app.idle(self._drain_timeout_s)


def _credentials(tls: TlsConfig) -> grpc.ServerCredentials:
    return grpc.ssl_server_credentials([(Path(tls.key).read_bytes(), Path(tls.certificate).read_bytes())])


def _why_waiting(app: AppSpec) -> str:
    return what_is_missing(app, ray.cluster_resources())


def gateway_application(hosts: list[AppSpec], doors: AccessSettings, server: ServerConfig) -> Any:
    """Return the Serve application at `/`."""
    drain_timeout_s = max(host.drain_timeout_s for host in hosts)
    deployment = serve.deployment(
        name="gateway",
        max_ongoing_requests=MAX_ONGOING_REQUESTS,
        graceful_shutdown_timeout_s=drain_timeout_s,
        graceful_shutdown_wait_loop_s=0.2,
        # Two replicas on one machine cannot both bind the gRPC port.
        max_surge_percent=0 if server.grpc_port else SURGE_PERCENT,
        logging_config=RAY_LOGGING,
        ray_actor_options={"num_cpus": GATEWAY_CPUS},
    )
    return deployment(serve.ingress()(Gateway)).bind(hosts, drain_timeout_s, doors, server)
