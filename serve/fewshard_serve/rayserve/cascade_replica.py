"""One replica of a cascade without Ray, in the place where a host has its `Replica`; `host` wraps both."""

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
    """A cascade that asks the hosts of its stages. Make it with `open`."""

    def __init__(self, spec: CascadeSpec, calls: HostCalls) -> None:
        self.metrics = Metrics(spec.metrics)
        self._spec = spec
        self._directory = ModelRouter(spec.hosts, calls, self.metrics, {})
        self._cascade = Cascade(
            spec.name, spec.config.stages, spec.config.thresholds, self._directory.classify, self._observe
        )
        self._following: asyncio.Task[None] | None = None
        self._num_inside = 0
        self._is_counted = False
        self._is_draining = False

    @classmethod
    async def open(cls, spec: CascadeSpec, calls: HostCalls) -> "CascadeReplica":
        """Begin to follow the stages; the cascade is ready once they are."""
        self = cls(spec, calls)
        self._following = asyncio.create_task(self._follow())
        return self

    @property
    def hosted(self) -> Mapping[str, HostedModel]:
        """It holds no model itself."""
        return {}

    @property
    def models(self) -> Mapping[str, ServedModel]:
        return {self._spec.name: self._cascade}

    def entries(self) -> list[ModelEntry]:
        """One line of the repository index."""
        cascade = self._cascade
        if cascade.ready:
            return [ModelEntry(cascade.info.name, "READY", cascade.info.version, info=cascade.info)]
        if not self._is_counted and not self._is_draining:
            return [ModelEntry(cascade.info.name, "LOADING", reason="loading")]
        return [ModelEntry(cascade.info.name, "UNAVAILABLE", reason=cascade.not_ready_reason)]

    async def classify(self, model: str, request: PredictionRequest) -> Classified | ServeError:
        """For the gateway, to whom an error is returned, not raised."""
        self._num_inside += 1
        try:
            return await answer_or_error(self.models, model, request)
        finally:
            self._num_inside -= 1

    def statistics(self, model: str) -> ModelStatistics:
        return merge([find_model(self.models, model).stats])

    async def routing(self, model: str) -> Routing | None:
        """A cascade has no experts of its own."""
        return None

    def diagnosis(self, model: str) -> Diagnosis | None:
        """Nor layers."""
        return None

    async def place(self, model: str, wanted: dict[str, Any]) -> dict[str, Any]:
        """A cascade has nothing to place."""
        raise NotFound(f"{model} is a cascade; place the experts of its stages")

    def check(self) -> None:
        """Raise where the replica should be replaced."""
        if self._following is not None and self._following.done():
            raise RuntimeError("the stages are followed no more") from self._following.exception()

    @property
    def num_inflight_items(self) -> int:
        """None of its own: they are in its stages' hosts."""
        return 0

    def begin_drain(self) -> None:
        """From now on it answers that it is not ready; requests inside go on."""
        self._is_draining = True
        self._cascade.not_ready_reason = DRAINING

    async def finish_drain(self, timeout_s: float) -> bool:
        """Answer what the gateway has asked; False if time ran out."""
        for _ in range(int(timeout_s / DRAIN_POLL_S)):
            if self._num_inside == 0:
                break
            await asyncio.sleep(DRAIN_POLL_S)
        return self._num_inside == 0

    async def refresh(self) -> None:
        """Ask once for the state of the stages."""
        await self._directory.refresh()
        index = {entry.name: entry for entry in await self._directory.model_index()}
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
        )
