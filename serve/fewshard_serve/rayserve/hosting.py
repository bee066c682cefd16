"""One replica of a host without Ray: its models, engine and metrics. `host` wraps it for Ray Serve."""

import asyncio
import time
from collections.abc import Mapping, Sequence
from typing import Any

from fewshard_serve.backends.base import Model
from fewshard_serve.core import ANYBODY, BatchStats, Caller, Classified, Input, ModelInfo
from fewshard_serve.engine import Engine
from fewshard_serve.engine.routing import Routing, RoutingWindow, describe_routing
from fewshard_serve.errors import FewshardError, NotReady, StartError
from fewshard_serve.http.service import ModelEntry, ServedModel, find_model
from fewshard_serve.metrics import Metrics, ModelSource
from fewshard_serve.protocol.activation import activate
from fewshard_serve.protocol.stats import ModelStatistics, merge
from fewshard_serve.rayserve.loading import LoadFailure, load_models
from fewshard_serve.rayserve.specs import HostSpec

DRAINING = "draining; ask again soon"


class HostedModel:
    """A model that was loaded, as the HTTP layer sees it."""

    def __init__(self, model: Model, engine: Engine, metrics: Metrics) -> None:
        self.info = model.info
        self.stats = ModelStatistics()
        self.routing = RoutingWindow(model.expert_counts)
        self.group = model.group
        self.place = model.place
        self.is_draining = False
        self._problem = model.problem
        self._engine = engine
        self._metrics = metrics

    @property
    def not_ready_reason(self) -> str:
        return DRAINING if self.is_draining else self._problem()

    @property
    def ready(self) -> bool:
        return not self.not_ready_reason

    def check_room(self, caller: Caller) -> None:
        self._engine.check_room(self.info.name, caller)

    async def classify(
        self, inputs: Sequence[Input], *, truncate: bool, timeout_s: float | None, caller: Caller = ANYBODY
    ) -> Classified:
        name = self.info.name
        classified = await self._engine.classify(
            name, inputs, truncate=truncate, timeout_s=timeout_s, caller=caller
        )
        self._metrics.observe_timings(name, classified.timings)
        self._metrics.observe_predictions(name, activate(classified.logits, self.info.problem_type))
        return classified

    def experts(self) -> dict[str, Any] | None:
        routing = self.routing.read()
        return None if routing is None else describe_routing(routing, self.group())


class FailedModel:
    """A model that could not be loaded: it says why to whoever asks."""

    def __init__(self, failure: LoadFailure) -> None:
        self.info = failure.info
        self.stats = ModelStatistics()
        self.not_ready_reason = failure.reason
        self.ready = False

    def check_room(self, caller: Caller) -> None:
        pass

    async def classify(
        self, inputs: Sequence[Input], *, truncate: bool, timeout_s: float | None, caller: Caller = ANYBODY
    ) -> Classified:
        raise NotReady(f"{self.info.name} is not ready: {self.not_ready_reason}")

    def experts(self) -> dict[str, Any] | None:
        return None


class Hosting:
    """The models of one replica; lives on one event loop. Make it with `open`."""

    def __init__(self, spec: HostSpec, loaded: Sequence[Model | LoadFailure]) -> None:
        models = [one for one in loaded if not isinstance(one, LoadFailure)]
        self._loaded = models
        self.metrics = Metrics()
        settings = {model.name: model.settings for model in spec.models}
        self._engine = Engine(models, settings, self._observe_batch)
        self.hosted = {model.info.name: HostedModel(model, self._engine, self.metrics) for model in models}
        failures = [one for one in loaded if isinstance(one, LoadFailure)]
        self._failed = {failure.name: FailedModel(failure) for failure in failures}
        for hosted in self.hosted.values():
            self.metrics.add_model(self._source(hosted))

    @classmethod
    async def open(cls, spec: HostSpec) -> "Hosting":
        """Load the models off the event loop; those that fail are kept as not ready, with the reason.

        Raises `StartError` instead where the specification says that all must load.
        """
        loaded = await asyncio.to_thread(load_models, spec)
        failed = [f"{one.name}: {one.reason}" for one in loaded if isinstance(one, LoadFailure)]
        if failed and spec.must_load:
            raise StartError("; ".join(failed))
        return cls(spec, loaded)

    @property
    def num_inflight_items(self) -> int:
        """Items of all models that are queued or run."""
        return self._engine.num_inflight_items

    @property
    def models(self) -> Mapping[str, ServedModel]:
        return {**self.hosted, **self._failed}

    def entries(self) -> list[ModelEntry]:
        """One line of the repository index for every model."""
        return [_entry(model) for model in self.models.values()]

    async def classify(
        self,
        model: str,
        inputs: Sequence[Input],
        *,
        truncate: bool,
        timeout_s: float | None,
        caller: Caller = ANYBODY,
    ) -> Classified | FewshardError:
        """For callers in another process, to whom an error is returned, not raised."""
        return await answer_or_error(
            self.models, model, inputs, truncate=truncate, timeout_s=timeout_s, caller=caller
        )

    def statistics(self, model: str) -> ModelStatistics:
        """A copy, since the runner's thread goes on counting while the answer is pickled."""
        return merge([find_model(self.models, model).stats])

    async def place(self, model: str, wanted: dict[str, Any]) -> dict[str, Any]:
        """Plan or apply a placement, off the event loop. Raises as `Model.place` does, `NotReady` where the
        model failed to load."""
        served = find_model(self.models, model)
        if not isinstance(served, HostedModel):
            raise NotReady(f"{model} is not ready: {served.not_ready_reason}")
        return await asyncio.to_thread(served.place, wanted)

    async def routing(self, model: str) -> Routing | None:
        """Read off the event loop, since it may wait for a device; None where there are no experts."""
        hosted = self.hosted.get(model)
        return None if hosted is None else await asyncio.to_thread(hosted.routing.read)

    def check(self) -> None:
        """Raise where the replica should be replaced."""
        self._engine.check()

    def begin_drain(self) -> None:
        """From now on every model answers that it is not ready; requests inside go on."""
        for hosted in self.hosted.values():
            hosted.is_draining = True

    async def finish_drain(self, timeout_s: float) -> bool:
        """Answer what was admitted and end the threads; False if time ran out."""
        has_ended = await self._engine.drain(timeout_s)
        for model in self._loaded:
            await asyncio.to_thread(model.close)
        return has_ended

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
            routing=hosted.routing.read,
            group=hosted.group,
        )


def _entry(model: ServedModel) -> ModelEntry:
    info: ModelInfo = model.info
    if isinstance(model, FailedModel):
        return ModelEntry(info.name, "UNAVAILABLE", reason=model.not_ready_reason)
    return ModelEntry(
        info.name, "READY" if model.ready else "UNAVAILABLE", info.version, model.not_ready_reason, info
    )


async def answer_or_error(
    models: Mapping[str, ServedModel],
    model: str,
    inputs: Sequence[Input],
    *,
    truncate: bool,
    timeout_s: float | None,
    caller: Caller,
) -> Classified | FewshardError:
    """Ask a model and count the request in its statistics."""
    started_at = time.monotonic()
    try:
        served = find_model(models, model)
        classified = await served.classify(inputs, truncate=truncate, timeout_s=timeout_s, caller=caller)
    except FewshardError as error:
        if model in models:
            models[model].stats.add_failure(time.monotonic() - started_at)
        return error
    served.stats.add_request(time.monotonic() - started_at, classified.timings, 0.0)
    return classified
