"""The Ray Serve deployment of a host. Its `Replica` is called over HTTP, by its peers and by the gateway."""

import asyncio
from contextlib import ExitStack
from typing import Any

from ray import serve

from fewshard_core.values import Diagnosis
from fewshard_models.auto_classes import register_only_by_import
from fewshard_serve.core import Classified, PredictionRequest
from fewshard_serve.errors import ServeError
from fewshard_serve.expert_statistics import Routing
from fewshard_serve.http.host import HostApp
from fewshard_serve.http.middleware import AccessMiddleware
from fewshard_serve.http.service import ModelEntry
from fewshard_serve.memory import give_back_freed
from fewshard_serve.protocol.stats import ModelStatistics
from fewshard_serve.rayserve.actor_process import (
    RAY_LOGGING,
    CountedApp,
    configure_logging,
    freeze_loaded,
    print_to,
)
from fewshard_serve.rayserve.autoscaling import ITEMS, autoscaling, counted_start
from fewshard_serve.rayserve.broadcast import MergedService
from fewshard_serve.rayserve.cascade_replica import CascadeReplica
from fewshard_serve.rayserve.deployment_plan import AppSpec, CascadeSpec, HostSpec
from fewshard_serve.rayserve.handles import HandleCalls, ask_all
from fewshard_serve.rayserve.replica import Replica

DEPLOYMENT = "host"
MAX_ONGOING_REQUESTS = 100_000
"""Far above every admission limit, so that Fewshard refuses requests itself, with its own error body."""
HEALTH_PERIOD_S = 2.0
HEALTH_TIMEOUT_S = 10.0
"""Serve replaces a replica after three failures in a row."""
SURGE_PERCENT = 100
"""An update starts a full set of new replicas before it stops the old ones."""
PEER_TIMEOUT_S = 2.0
PLACING_TIMEOUT_S = 90.0
"""A placement takes effect only after its weights are loaded."""


class Host:
    """One replica. Its methods run on the replica's event loop and must not block it."""

    def __init__(self, spec: AppSpec) -> None:
        self._spec = spec
        print_to(spec.doors.log_path)
        configure_logging(spec.doors.logs, spec.doors.log_path)
        register_only_by_import()  # the networks run in another process
        context = serve.get_replica_context()
        self._name: str = context.replica_tag
        self._labels = {"application": context.app_name, "replica": self._name}

    async def __serve_build_asgi_app__(self) -> CountedApp:
        """Build the application. Ray Serve calls it once and treats the replica as ready when it returns."""
        self._replica = await _open(self._spec)
        service = MergedService(self._replica, self._labels, self._ask_peers)
        # Ray Serve adds X-Request-Id to the response itself.
        self._access = AccessMiddleware(self._spec.doors, echoes_id=False)
        app = HostApp(
            service,
            limits=self._spec.doors.limits,
            doors=self._access,
            on_request=self._replica.metrics.observe_request,
        )
        self._app = CountedApp(app)
        freeze_loaded()
        give_back_freed()
        return self._app

    async def check_health(self) -> None:
        self._replica.check()

    async def metrics_part(self, is_open_metrics: bool) -> tuple[str, bytes]:
        """Return this replica's name, and its metrics with its labels."""
        text = await asyncio.to_thread(self._replica.metrics.render, self._labels, is_open_metrics)
        return self._name, text

    async def name(self) -> str:
        """Return this replica's name, which shows that it is alive."""
        return self._name

    async def record_autoscaling_stats(self) -> dict[str, float]:
        """Return the metric that `ItemsPolicy` reads."""
        return {ITEMS: self._replica.num_inflight_items}

    async def stats_part(self, model: str) -> ModelStatistics:
        return self._replica.statistics(model)

    async def routing_part(self, model: str) -> Routing | None:
        return await self._replica.routing(model)

    async def diagnosis_part(self, model: str) -> Diagnosis | None:
        return self._replica.diagnosis(model)

    async def place_part(self, model: str, wanted: dict[str, Any]) -> dict[str, Any] | ServeError:
        """Apply this replica's part of a placement. An error is returned, not raised."""
        try:
            return await self._replica.place(model, dict(wanted))
        except ServeError as error:
            return error

    async def model_states(self) -> list[ModelEntry]:
        return self._replica.entries()

    async def classify_for_gateway(self, model: str, request: PredictionRequest) -> Classified | ServeError:
        """Classify. An error is returned, because Ray would wrap a raised one in its own class."""
        return await self._replica.classify(model, request)

    async def reload_tokens(self) -> bool:
        """Read the tokens file again. If it cannot be read, keep the old tokens and return False."""
        return self._access.reload_tokens()

    async def begin_drain(self) -> None:
        """Refuse new HTTP requests. Requests in progress and requests of the gateway continue."""
        self._replica.begin_drain()

    async def finish_drain(self) -> bool:
        """Wait until all requests are answered. Return False on time-out."""
        # A replica that started after `begin_drain` was broadcast has not received it.
        self._replica.begin_drain()
        is_idle = await self._app.idle(self._spec.drain_timeout_s)
        return await self._replica.finish_drain(self._spec.drain_timeout_s) and is_idle

    async def _ask_peers(self, method: str, *args: Any) -> list[Any]:
        timeout_s = PLACING_TIMEOUT_S if method == "place_part" else PEER_TIMEOUT_S
        if self._spec.max_replicas == 1:
            return [await getattr(self, method)(*args)]
        context = serve.get_replica_context()
        handle = serve.get_deployment_handle(context.deployment, context.app_name)
        return await ask_all(handle, method, *args, timeout_s=timeout_s)


async def _open(spec: AppSpec) -> Replica | CascadeReplica:
    if isinstance(spec, CascadeSpec):
        return await CascadeReplica.open(spec, HandleCalls(DEPLOYMENT))
    # Off the event loop, which must answer Serve meanwhile.
    start = counted_start(spec.starts_dir, spec.app)
    await asyncio.to_thread(start.__enter__)
    with ExitStack() as stack:
        stack.push(start)
        return await Replica.open(spec, HandleCalls(DEPLOYMENT))


def host_application(spec: AppSpec) -> Any:
    """Return the Serve application of a host or cascade. Run it under the spec's name and route prefix."""
    deployment = serve.deployment(
        name=DEPLOYMENT,
        max_ongoing_requests=MAX_ONGOING_REQUESTS,
        graceful_shutdown_timeout_s=spec.drain_timeout_s,
        graceful_shutdown_wait_loop_s=0.2,
        health_check_period_s=HEALTH_PERIOD_S,
        health_check_timeout_s=HEALTH_TIMEOUT_S,
        max_surge_percent=_surge_percent(spec),
        logging_config=RAY_LOGGING,
        ray_actor_options={"num_cpus": spec.num_cpus, "num_gpus": spec.num_gpus},
        **_scale(spec),
        **_shards(spec),
    )
    return deployment(serve.ingress()(Host)).bind(spec)


def _surge_percent(spec: AppSpec) -> int:
    """Return 0 if an extra replica would wait for ever for a GPU, or for the memory of a whole group."""
    return 0 if spec.num_gpus or spec.num_shards > 1 else SURGE_PERCENT


def _shards(spec: AppSpec) -> dict[str, Any]:
    """Return one bundle for each shard. The replica leads the group and runs in the first bundle."""
    if spec.experts is None:
        return {}
    bundle = {"CPU": spec.num_cpus} | ({"GPU": spec.num_gpus} if spec.num_gpus else {})
    return {
        "placement_group_bundles": [bundle] * spec.num_shards,
        "placement_group_strategy": spec.experts.strategy.upper(),
    }


def _scale(spec: AppSpec) -> dict[str, Any]:
    if spec.min_replicas == spec.max_replicas:
        return {"num_replicas": spec.min_replicas}
    assert isinstance(spec, HostSpec), "a cascade has one replica. This is a bug."
    return {"autoscaling_config": autoscaling(spec.replicas)}
