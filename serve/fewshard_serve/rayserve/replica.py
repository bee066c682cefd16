"""One replica of a host, without Ray: its models, engine and metrics. `deployment` wraps it for Ray Serve."""

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from fewshard_core.values import Diagnosis, ModelInfo
from fewshard_models.classifier.base import Classifier, CountsExperts, Probed, ReportsProblems
from fewshard_serve.backends.early_process import socket_path
from fewshard_serve.backends.process import ModelProcess
from fewshard_serve.capabilities import Grouped, OnOneGpu, Placeable
from fewshard_serve.core import BatchStats, Caller, Classified, PredictionRequest
from fewshard_serve.cpu_threads import num_threads
from fewshard_serve.engine import Engine
from fewshard_serve.errors import InternalError, NotFound, NotReady, ServeError, StartError
from fewshard_serve.expert_statistics import Routing, RoutingWindow
from fewshard_serve.http.service import ModelEntry, Room, ServedModel, find_model
from fewshard_serve.metrics import Metrics, ModelSource
from fewshard_serve.metrics.energy import energy_reader
from fewshard_serve.protocol.experts import describe_routing
from fewshard_serve.protocol.stats import ModelStatistics, merge
from fewshard_serve.rayserve.deployment_plan import HostSpec, ModelSpec
from fewshard_serve.rayserve.handles import HostCalls
from fewshard_serve.rayserve.model_loader import LoadFailure, load_models
from fewshard_serve.rayserve.shadow_traffic import Shadow, ShadowModel, shadow_elsewhere

DRAINING = "draining; ask again soon"


def _nothing() -> None:
    """Stands in for a capability that the model lacks."""


def _no_problem() -> str:
    """Stands in for `ReportsProblems.problem`."""
    return ""


class HostedModel:
    """A loaded model, as the HTTP layer uses it."""

    def __init__(self, model: Classifier, engine: Engine, metrics: Metrics) -> None:
        self.info = model.info
        self.stats = ModelStatistics()
        self.routing = RoutingWindow(model.expert_counts if isinstance(model, CountsExperts) else _nothing)
        self.group = model.group if isinstance(model, Grouped) else _nothing
        self.diagnosis = model.diagnosis if isinstance(model, Probed) else _nothing
        # Asked once: checking an object against a protocol takes several us, and every request asks for this.
        self._problem = model.problem if isinstance(model, ReportsProblems) else _no_problem
        self.is_draining = False
        self.shadow: Shadow | None = None
        self._model = model
        self._engine = engine
        self._metrics = metrics

    @property
    def not_ready_reason(self) -> str:
        if self.is_draining:
            return DRAINING
        return self._problem() or self._engine.served[self.info.name].watch.problem

    @property
    def ready(self) -> bool:
        return not self.not_ready_reason

    @property
    def room(self) -> Room:
        return self._engine.served[self.info.name].admission

    def check_room(self, caller: Caller) -> None:
        self._engine.check_room(self.info.name, caller)

    async def classify(self, request: PredictionRequest) -> Classified:
        name = self.info.name
        classified = await self._engine.classify(name, request)
        self._metrics.observe_timings(name, classified.timings)
        if not request.caller.is_probing:
            self._metrics.observe_predictions(name, classified.labelled_logits)
            if self.shadow is not None and not request.is_of_cascade:
                self.shadow.follow(request, classified)
        return classified

    def place(self, wanted: dict[str, Any]) -> dict[str, Any]:
        """Place experts as `Placeable.place` does. Raises `NotFound` if the model is not sharded."""
        if not isinstance(self._model, Placeable):
            raise NotFound(f"{self.info.name} is not sharded; give it experts.shards in the configuration")
        return self._model.place(wanted)

    def experts(self) -> dict[str, Any] | None:
        routing = self.routing.read()
        return None if routing is None else describe_routing(routing, self.group())

    def sparsity(self) -> dict[int, float]:
        """Return the sparsity of each layer over the items that were diagnosed."""
        diagnosis = self.diagnosis()
        return {} if diagnosis is None else dict(enumerate(diagnosis.sparsity))


class FailedModel:
    """A model that could not be loaded. Every request gets the reason."""

    def __init__(self, failure: LoadFailure) -> None:
        self.info = failure.info
        self.stats = ModelStatistics()
        self.not_ready_reason = failure.reason
        self.ready = False
        self.room = None

    def check_room(self, caller: Caller) -> None:
        pass

    async def classify(self, request: PredictionRequest) -> Classified:
        raise NotReady(f"{self.info.name} is not ready: {self.not_ready_reason}")

    def experts(self) -> dict[str, Any] | None:
        return None


class Replica:
    """The models of one replica, on one event loop. Create it with `open`."""

    def __init__(
        self,
        spec: HostSpec,
        loaded: Sequence[Classifier | LoadFailure],
        process: ModelProcess | None,
        calls: HostCalls | None = None,
    ) -> None:
        models = [one for one in loaded if not isinstance(one, LoadFailure)]
        self._loaded = models
        self._process = process
        self.metrics = Metrics(
            spec.metrics, energy_of(models), lambda: [] if process is None else [process.pid]
        )
        settings = {model.name: model.settings for model in spec.models}
        self._costs = {model.name: model.cost for model in spec.models}
        num_streams = max((model.info.execution.num_streams for model in models), default=1)
        # A process of models receives the next batch while it computes.
        depth = num_streams if process is None else num_streams + 1
        self._engine = Engine(models, settings, self._observe_batch, depth=depth)
        self.hosted = {model.info.name: HostedModel(model, self._engine, self.metrics) for model in models}
        failures = [one for one in loaded if isinstance(one, LoadFailure)]
        self._failed = {failure.name: FailedModel(failure) for failure in failures}
        for hosted in self.hosted.values():
            self.metrics.add_model(self._source(hosted))
        self.metrics.add_failed(self._failed)
        self._calls = calls
        for model_spec in spec.models:
            self._give_shadow(model_spec, spec.app)

    @classmethod
    async def open(cls, spec: HostSpec, calls: HostCalls | None = None) -> "Replica":
        """Load the models off the event loop. Models that fail are kept as not ready, with the reason.

        `calls` reach shadows on other hosts. Raises `StartError` if a model fails and the specification sets
        `must_load`.
        """
        early = socket_path(spec.starts_dir, spec.app)
        process = ModelProcess(num_threads(spec.num_neighbours), early) if spec.experts is None else None
        loaded = await asyncio.to_thread(load_models, spec, process)
        failed = [f"{one.name}: {one.reason}" for one in loaded if isinstance(one, LoadFailure)]
        if failed and spec.must_load:
            if process is not None:
                process.close()
            raise StartError("; ".join(failed))
        return cls(spec, loaded, process, calls)

    @property
    def num_inflight_items(self) -> int:
        """Items of all models that are queued or being computed."""
        return self._engine.num_inflight_items

    @property
    def models(self) -> Mapping[str, ServedModel]:
        return {**self.hosted, **self._failed}

    def entries(self) -> list[ModelEntry]:
        """Return one entry of the repository index for every model."""
        return [_entry(model) for model in self.models.values()]

    async def classify(self, model: str, request: PredictionRequest) -> Classified | ServeError:
        """Classify for callers in another process. An error is returned, not raised."""
        return await answer_or_error(self.models, model, request)

    def statistics(self, model: str) -> ModelStatistics:
        """Return a copy, because the runner's thread keeps counting while the answer is pickled."""
        return merge([find_model(self.models, model).stats])

    async def place(self, model: str, wanted: dict[str, Any]) -> dict[str, Any]:
        """Plan or apply a placement, off the event loop.

        Raises as `HostedModel.place` does, and `NotReady` if the model failed to load.
        """
        served = find_model(self.models, model)
        if not isinstance(served, HostedModel):
            raise NotReady(f"{model} is not ready: {served.not_ready_reason}")
        return await asyncio.to_thread(served.place, wanted)

    async def routing(self, model: str) -> Routing | None:
        """Return the expert routing; None without experts. Runs off the event loop, because a device may
        block."""
        hosted = self.hosted.get(model)
        return None if hosted is None else await asyncio.to_thread(hosted.routing.read)

    def diagnosis(self, model: str) -> Diagnosis | None:
        """Return the diagnosis; None if no item was diagnosed."""
        hosted = self.hosted.get(model)
        return None if hosted is None else hosted.diagnosis()

    def check(self) -> None:
        """Raise if the replica should be replaced."""
        if self._process is not None and self._process.problem:
            raise InternalError(self._process.problem)
        if self._process is None or not self._process.is_restarting:
            self._engine.check()

    def begin_drain(self) -> None:
        """Report every model as not ready from now on. Requests in progress continue."""
        for hosted in self.hosted.values():
            hosted.is_draining = True

    async def finish_drain(self, timeout_s: float) -> bool:
        """Answer the admitted requests, then end the threads. Return False on time-out."""
        for hosted in self.hosted.values():
            if hosted.shadow is not None:
                await hosted.shadow.close()
        has_ended = await self._engine.drain(timeout_s)
        for model in self._loaded:
            await asyncio.to_thread(model.close)
        if self._process is not None:
            await asyncio.to_thread(self._process.close)
        return has_ended

    def _give_shadow(self, model: ModelSpec, app: str) -> None:
        hosted, settings = self.hosted.get(model.name), model.shadow
        if hosted is None or settings is None:
            return
        if model.shadow_app == app:
            shadow = self._shadow_here(settings.model)
        else:
            assert self._calls is not None, "a shadow elsewhere needs calls. This is a bug."
            shadow = shadow_elsewhere(settings.model, model.shadow_app, self._calls)
        hosted.shadow = Shadow(settings, hosted.info, shadow, self.metrics.observe_shadow)

    def _shadow_here(self, name: str) -> ShadowModel:
        async def info() -> ModelInfo | None:
            return self.hosted[name].info if name in self.hosted else None

        async def classify(request: PredictionRequest) -> Classified:
            return await self.hosted[name].classify(request)

        return ShadowModel(info, classify)

    def _observe_batch(self, stats: BatchStats) -> None:
        self.metrics.observe_batch(stats)
        self.hosted[stats.model].stats.add_batch(stats)

    def _source(self, hosted: HostedModel) -> ModelSource:
        served = self._engine.served[hosted.info.name]
        return ModelSource(
            info=hosted.info,
            queue_items=lambda: served.num_queued_items,
            inflight_items=lambda: served.num_inflight_items,
            admission_limit_items=lambda: served.admission.limit_items,
            is_ready=lambda: hosted.ready,
            routing=hosted.routing.read,
            group=hosted.group,
            sparsity=hosted.sparsity,
            cost=self._costs[hosted.info.name],
        )


def energy_of(models: Sequence[Classifier]) -> Callable[[], float] | None:
    """Return the energy counter of the one GPU that these models use; None if they use none or several."""
    uuid = next((one.gpu_uuid for one in models if isinstance(one, OnOneGpu) and one.gpu_uuid), "")
    return energy_reader(uuid) if uuid else None


def _entry(model: ServedModel) -> ModelEntry:
    info: ModelInfo = model.info
    if isinstance(model, FailedModel):
        return ModelEntry(info.name, "UNAVAILABLE", reason=model.not_ready_reason)
    return ModelEntry(
        info.name, "READY" if model.ready else "UNAVAILABLE", info.version, model.not_ready_reason, info
    )


async def answer_or_error(
    models: Mapping[str, ServedModel], model: str, request: PredictionRequest
) -> Classified | ServeError:
    """Classify, and count the request in the model's statistics. An error is returned, not raised."""
    started_at = time.monotonic()
    try:
        served = find_model(models, model)
        classified = await served.classify(request)
    except ServeError as error:
        if model in models:
            models[model].stats.add_failure(time.monotonic() - started_at)
        return error
    served.stats.add_request(time.monotonic() - started_at, classified.timings, 0.0)
    return classified
