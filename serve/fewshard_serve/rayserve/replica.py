"""One replica of a host, without Ray: its models, engine and metrics. `deployment` wraps it for Ray Serve."""

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from fewshard_core.values import Diagnosis, ModelInfo
from fewshard_models.classifier.base import Classifier, CountsExperts, Probed, ReportsProblems
from fewshard_serve.backends.early_process import socket_path
from fewshard_serve.backends.process import ModelProcess
from fewshard_serve.canary import CanaryConfig
from fewshard_serve.capabilities import Grouped, OnOneGpu, Placeable
from fewshard_serve.core import BatchStats, Caller, Classified, PredictionRequest
from fewshard_serve.cpu_threads import num_threads
from fewshard_serve.engine import Engine
from fewshard_serve.errors import ConfigError, InternalError, NotFound, NotReady, ServeError, StartError
from fewshard_serve.expert_statistics import Routing, RoutingWindow
from fewshard_serve.http.service import ModelEntry, Room, ServedModel, State, find_model
from fewshard_serve.http.versions import Version, VersionedModel, key_of, why_not_together
from fewshard_serve.metrics import Metrics, ModelSource
from fewshard_serve.metrics.energy import energy_reader
from fewshard_serve.protocol.experts import describe_routing
from fewshard_serve.protocol.stats import ModelStatistics, merge
from fewshard_serve.rayserve.canary_traffic import Canary, read_truth
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
        settings = {model.key: model.settings for model in spec.models}
        self._costs = {model.key: model.cost for model in spec.models}
        num_streams = max((model.info.execution.num_streams for model in models), default=1)
        # A process of models receives the next batch while it computes.
        depth = num_streams if process is None else num_streams + 1
        self._engine = Engine(models, settings, self._observe_batch, depth=depth)
        self.hosted = {model.info.name: HostedModel(model, self._engine, self.metrics) for model in models}
        failures = [one for one in loaded if isinstance(one, LoadFailure)]
        self._failed = {failure.name: FailedModel(failure) for failure in failures}
        self._served = by_version({**self.hosted, **self._failed}, spec.models)
        for hosted in self.hosted.values():
            self.metrics.add_model(self._source(hosted))
        self.metrics.add_failed(self._failed)
        self._calls = calls
        self._canaries = self._begun_canaries(spec.models)
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
        loaded = without_unlike(await asyncio.to_thread(load_models, spec, process), spec.models)
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
        """Every model by its name, and every version also by its key."""
        return self._served

    def entries(self) -> list[ModelEntry]:
        """Return one entry of the repository index for every model."""
        return [_entry(model) for model in self.models.values() if not isinstance(model, Version)]

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
        for follower in (*self._canaries, *(hosted.shadow for hosted in self.hosted.values())):
            if follower is not None:
                await follower.close()
        has_ended = await self._engine.drain(timeout_s)
        for model in self._loaded:
            await asyncio.to_thread(model.close)
        if self._process is not None:
            await asyncio.to_thread(self._process.close)
        return has_ended

    def _begun_canaries(self, specs: Sequence[ModelSpec]) -> list[Canary]:
        begun = []
        for spec in specs:
            model = self._served[spec.name]
            if spec.canary is not None and spec.weight and isinstance(model, VersionedModel) and model.ready:
                truth = read_truth(spec.canary.judge.labels_from, model.info)
                begun.append(Canary(spec.canary, model, self.metrics, truth))
        return begun

    def _give_shadow(self, model: ModelSpec, app: str) -> None:
        hosted, settings = self.hosted.get(model.key), model.shadow
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
            shadow = self.models.get(name)
            return None if shadow is None or isinstance(shadow, FailedModel) else shadow.info

        async def classify(request: PredictionRequest) -> Classified:
            return await self.models[name].classify(request)

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


def by_version(loaded: Mapping[str, ServedModel], specs: Sequence[ModelSpec]) -> dict[str, ServedModel]:
    """Return every model by its name, and every version of one also by its key."""
    found: dict[str, ServedModel] = {}
    for name in dict.fromkeys(spec.name for spec in specs):
        own = [spec for spec in specs if spec.name == name]
        versions = {
            spec.version: Version(loaded[spec.key], name, spec.version) for spec in own if spec.version
        }
        if versions:
            weights = {spec.version: spec.weight for spec in own}
            found[name] = VersionedModel(name, versions, weights)
            found |= {key_of(name, version): each for version, each in versions.items()}
        else:
            found[name] = loaded[name]
    return found


def without_unlike(
    loaded: Sequence[Classifier | LoadFailure], specs: Sequence[ModelSpec]
) -> list[Classifier | LoadFailure]:
    """Return what is loaded; versions that share requests, and must not, have failed."""
    by_key = {one.info.name: one for one in loaded}
    failed: dict[str, LoadFailure] = {}
    for name in {spec.name for spec in specs if spec.version}:
        own = [spec for spec in specs if spec.name == name]
        canary = own[0].canary
        new = "" if canary is None else canary.to
        together = {spec.key: spec for spec in own if spec.weight > 0 or spec.version == new}
        found = [replace(by_key[key].info, version=spec.version) for key, spec in together.items()]
        is_loaded = not any(isinstance(by_key[key], LoadFailure) for key in together)
        if is_loaded and (why := why_not_together(found) or why_no_canary(canary, found[0])):
            failed |= {key: LoadFailure(key, why) for key in together}
    return [failed.get(one.info.name, one) for one in loaded]


def why_no_canary(canary: CanaryConfig | None, info: ModelInfo) -> str:
    """Return why a model cannot have this canary; "" if it can."""
    if canary is None:
        return ""
    if info.problem_type == "regression":
        return "a canary compares labels, and a regression has none; use a shadow"
    try:
        read_truth(canary.judge.labels_from, info)
    except ConfigError as error:
        return str(error)
    return ""


def _entry(model: ServedModel) -> ModelEntry:
    info: ModelInfo = model.info
    if isinstance(model, Version):
        own = _entry(model.served)
        return replace(own, name=model.name, version=model.version, info=own.info and model.info)
    if isinstance(model, VersionedModel):
        versions = tuple(map(_entry, model.versions.values()))
        main = next(each for each in versions if each.version == info.version)
        state: State = "READY" if model.ready else "UNAVAILABLE"
        return replace(main, state=state, reason=model.not_ready_reason, versions=versions)
    if isinstance(model, FailedModel):
        return ModelEntry(info.name, "UNAVAILABLE", reason=model.not_ready_reason)
    return ModelEntry(
        info.name, "READY" if model.ready else "UNAVAILABLE", info.version, model.not_ready_reason, info
    )


async def answer_or_error(
    models: Mapping[str, ServedModel], model: str, request: PredictionRequest
) -> Classified | ServeError:
    """Classify, and count the request in the model's statistics. An error is returned, not raised."""
    started_at, served = time.monotonic(), None
    try:
        served = find_model(models, model)
        if isinstance(served, VersionedModel):
            served = served.choose(request.split_key)
        classified = await served.classify(request)
    except ServeError as error:
        if served is not None:
            served.stats.add_failure(time.monotonic() - started_at)
        return error
    served.stats.add_request(time.monotonic() - started_at, classified.timings, 0.0)
    return classified
