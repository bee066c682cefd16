"""One replica of a cascade, without Ray. `deployment` uses it in place of a `Replica`."""

import asyncio
from collections.abc import Mapping
from typing import Any

from fewshard_core.values import Diagnosis
from fewshard_serve.cascade import Cascade, Spent
from fewshard_serve.core import Classified, PredictionRequest
from fewshard_serve.errors import NotFound, ServeError
from fewshard_serve.expert_statistics import Routing
from fewshard_serve.http.service import ModelEntry, ServedModel, find_model
from fewshard_serve.metrics import Metrics, ModelSource
from fewshard_serve.protocol.stats import ModelStatistics, merge
from fewshard_serve.rayserve.deployment_plan import CascadeSpec
from fewshard_serve.rayserve.handles import HostCalls
from fewshard_serve.rayserve.model_router import STARTING_REFRESH_S, STEADY_REFRESH_S, ModelRouter
from fewshard_serve.rayserve.replica import DRAINING, HostedModel, answer_or_error

DRAIN_POLL_S = 0.02


class CascadeReplica:
    """A cascade that calls the hosts of its stages. Create it with `open`."""

    def __init__(self, spec: CascadeSpec, calls: HostCalls) -> None:
        self.metrics = Metrics(spec.metrics)
        self._spec = spec
        self._router = ModelRouter(spec.hosts, calls, self.metrics, {})
        self._cascade = Cascade(
            spec.name, spec.config.stages, spec.config.thresholds, self._router.classify, self._observe
        )
        self._following: asyncio.Task[None] | None = None
        self._num_inside = 0
        self._is_counted = False
        self._is_draining = False

    @classmethod
    async def open(cls, spec: CascadeSpec, calls: HostCalls) -> "CascadeReplica":
        """Start to poll the stages. The cascade is ready once they are."""
        self = cls(spec, calls)
        self._following = asyncio.create_task(self._follow())
        return self

    @property
    def hosted(self) -> Mapping[str, HostedModel]:
        """Empty: a cascade loads no model itself."""
        return {}

    @property
    def models(self) -> Mapping[str, ServedModel]:
        return {self._spec.name: self._cascade}

    def entries(self) -> list[ModelEntry]:
        """Return the cascade's entry of the repository index."""
        cascade = self._cascade
        if cascade.ready:
            return [ModelEntry(cascade.info.name, "READY", cascade.info.version, info=cascade.info)]
        if not self._is_counted and not self._is_draining:
            return [ModelEntry(cascade.info.name, "LOADING", reason="loading")]
        return [ModelEntry(cascade.info.name, "UNAVAILABLE", reason=cascade.not_ready_reason)]

    async def classify(self, model: str, request: PredictionRequest) -> Classified | ServeError:
        """Classify for the gateway. An error is returned, not raised."""
        self._num_inside += 1
        try:
            return await answer_or_error(self.models, model, request)
        finally:
            self._num_inside -= 1

    def statistics(self, model: str) -> ModelStatistics:
        return merge([find_model(self.models, model).stats])

    async def routing(self, model: str) -> Routing | None:
        """None: a cascade has no experts of its own."""
        return None

    def diagnosis(self, model: str) -> Diagnosis | None:
        """None: a cascade has no layers of its own."""
        return None

    async def place(self, model: str, wanted: dict[str, Any]) -> dict[str, Any]:
        """Raise `NotFound`: a cascade has no experts to place."""
        raise NotFound(f"{model} is a cascade; place the experts of its stages")

    def check(self) -> None:
        """Raise `RuntimeError` if the replica should be replaced."""
        if self._following is not None and self._following.done():
            raise RuntimeError("the stages are followed no more") from self._following.exception()

    @property
    def num_inflight_items(self) -> int:
        """0: the items are counted by the hosts of the stages."""
        return 0

    def begin_drain(self) -> None:
        """Report not ready from now on. Requests in progress continue."""
        self._is_draining = True
        self._cascade.not_ready_reason = DRAINING

    async def finish_drain(self, timeout_s: float) -> bool:
        """Wait for the gateway's requests to be answered. Return False on time-out."""
        for _ in range(int(timeout_s / DRAIN_POLL_S)):
            if self._num_inside == 0:
                break
            await asyncio.sleep(DRAIN_POLL_S)
        return self._num_inside == 0

    async def refresh(self) -> None:
        """Read the state of the stages once."""
        await self._router.refresh()
        index = {entry.name: entry for entry in await self._router.model_index()}
        ready = [index[name] for name in self._spec.config.stages]
        self._cascade.set_stages([entry.info if entry.state == "READY" else None for entry in ready])
        if self._is_draining:
            self.begin_drain()
        elif self._cascade.ready and not self._is_counted:
            self._is_counted = True
            self.metrics.add_model(self._source())

    async def _follow(self) -> None:
        while True:
            await self.refresh()
            await asyncio.sleep(STEADY_REFRESH_S if self._cascade.ready else STARTING_REFRESH_S)

    def _observe(self, classified: Classified, spent: Spent) -> None:
        info = self._cascade.info
        self.metrics.observe_timings(info.name, classified.timings)
        self.metrics.observe_predictions(info.name, classified.logits)
        self.metrics.observe_cascade(info.name, spent.items, spent.macs, spent.macs_of_last)

    def _source(self) -> ModelSource:
        return ModelSource(
            info=self._cascade.info,
            queue_items=lambda: 0,
            inflight_items=lambda: 0,
            admission_limit_items=lambda: 0,
            has_queue=False,
            is_ready=lambda: self._cascade.ready,
        )
