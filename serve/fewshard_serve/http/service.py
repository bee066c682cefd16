"""The interfaces that the two ASGI applications need from the services behind them, and shared look-ups.

`rayserve` and tests implement the interfaces. A call is cancelled when its client disconnects.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from fewshard_core.values import ModelInfo
from fewshard_serve.auth import Tokens
from fewshard_serve.core import Caller, Classified, PredictionRequest
from fewshard_serve.errors import MalformedRequest, ModelUnloaded, NotFound, NotReady, UnknownModel
from fewshard_serve.http.request import Request
from fewshard_serve.protocol.limits import Limits
from fewshard_serve.protocol.repository import Action
from fewshard_serve.protocol.stats import ModelStatistics, merge

EXTENSIONS = ("binary_tensor_data", "classification", "model_configuration", "model_repository", "statistics")
"""The extensions in the server metadata, in the terms of the V2 protocol."""


State = Literal["READY", "LOADING", "UNAVAILABLE"]
UNLOADED = "unloaded"
"""The reason of a model that a request has unloaded, in Triton's word."""


class RequestHook(Protocol):
    """Called once for each prediction request, after its answer is built.

    model: the model's name; "unknown" if it is not served, so that callers cannot create label values.
    protocol: the metric label of its route, or "v2_grpc".
    outcome: "ok" or the error's code.
    seconds: from the request's arrival.
    trace_id: empty if the request is not traced.
    """

    def __call__(
        self, model: str, protocol: str, outcome: str, seconds: float, trace_id: str = "", /
    ) -> None: ...


def ignore_request(model: str, protocol: str, outcome: str, seconds: float, trace_id: str = "", /) -> None:
    """The hook that does nothing."""


class Room(Protocol):
    """The admission limit of a model. Only the event loop uses it."""

    @property
    def limit_items(self) -> int:
        """The most items that may be in flight now."""

    def retry_after_s(self) -> float:
        """Seconds after which a refused client should retry."""

    def note_refusals(self) -> None:
        """Record that HAProxy refused requests because of the limit."""


class ServedModel(Protocol):
    """One model on one replica."""

    @property
    def info(self) -> ModelInfo: ...

    @property
    def ready(self) -> bool: ...

    @property
    def not_ready_reason(self) -> str:
        """Why the model is not ready; "" if it is ready."""

    @property
    def stats(self) -> ModelStatistics:
        """The model's counters. The HTTP layer adds requests, the runner adds batches."""

    @property
    def room(self) -> Room | None:
        """The admission limit; None if the model has none."""

    def check_room(self, caller: Caller) -> None:
        """Raise `Overloaded` if any request of this caller would be refused, before its body is read."""

    async def classify(self, request: PredictionRequest) -> Classified:
        """Classify. Raises `Overloaded`, `DeadlineExceeded`, `NotReady` or `UnusableItem`."""

    def experts(self) -> dict[str, Any] | None:
        """Routing of the last window on this replica; None for a model without experts."""


class HostService(Protocol):
    """What one replica offers. The merged answers cover all replicas of its application."""

    def models(self) -> Mapping[str, ServedModel]: ...

    async def metrics_text(self, is_open_metrics: bool) -> bytes:
        """This replica's Prometheus text, or OpenMetrics without its last line."""

    async def merged_stats(self, model: str) -> dict[str, Any]:
        """`{"model_stats": [one entry], "replicas": the number of replicas that answered}`."""

    async def merged_experts(self, model: str) -> dict[str, Any] | None:
        """Routing over all replicas, and their number as `replicas`; None for a model without experts."""

    async def place(self, model: str, wanted: dict[str, Any]) -> dict[str, Any]:
        """Plan another placement of the experts on every replica, or apply it.

        `wanted` has the fields of a `PlacementRequest`, the answer those of a `PlacementChange`. Raises
        `NotFound` if the model is not sharded, `MalformedRequest` if the placement is impossible.
        """


@dataclass(frozen=True, slots=True)
class ModelEntry:
    """One entry of the repository index.

    reason: why the model is not ready; empty if it is.
    info: the model's description; None until a replica has loaded the model.
    versions: one entry for each version of a model that lists versions.
    """

    name: str
    state: State
    version: str = "1"
    reason: str = ""
    info: ModelInfo | None = None
    versions: tuple["ModelEntry", ...] = ()

    @property
    def lines(self) -> tuple["ModelEntry", ...]:
        """The entries of the repository index: one for each version, as in Triton."""
        return self.versions or (self,)


class GatewayService(Protocol):
    """What the gateway needs to know about all replicas."""

    async def model_index(self) -> Sequence[ModelEntry]:
        """Every model of the configuration. Called for each request, so it must answer from memory."""

    async def ready(self) -> bool:
        """Whether every model can take requests."""

    async def classify(self, model: str, request: PredictionRequest) -> Classified:
        """Classify with a model of the index, wherever it runs. Raises as `ServedModel.classify` does."""

    async def merged_stats(self, model: str) -> dict[str, Any]:
        """The statistics of a model of the index, as `HostService.merged_stats` returns them.

        Raises `NotReady` if no replica answers.
        """

    async def change(self, action: Action, model: str) -> None:
        """Load a model as the configuration describes it now, or unload it, and wait until that is done.

        Raises `ChangeRefused` with the reason if it is not done, `NotFound` if it cannot be done here.
        """

    async def reload_tokens(self) -> int:
        """Make every replica reload its tokens. Return the number of replicas that did."""

    async def metrics(self, is_open_metrics: bool) -> bytes:
        """The union of every replica's Prometheus text, or OpenMetrics without its last line."""

    async def own_metrics(self, is_open_metrics: bool) -> bytes:
        """The metrics of the gateway alone."""

    async def metrics_targets(self) -> list[dict[str, Any]]:
        """The replicas' own metrics endpoints, in the form of Prometheus' HTTP service discovery.

        Raises `NotFound` if the replicas cannot be reached individually.
        """


@dataclass(frozen=True, slots=True)
class HostContext:
    """The context that the handlers of a replica's routes receive."""

    service: HostService
    limits: Limits


@dataclass(frozen=True, slots=True)
class GatewayContext:
    """The context that the handlers of the gateway's routes receive.

    tokens: the tokens of this process; None if the server requires none.
    openapi: the OpenAPI document as JSON.
    """

    service: GatewayService
    limits: Limits
    tokens: Tokens | None
    openapi: bytes


def find_model(models: Mapping[str, ServedModel], name: str) -> ServedModel:
    """The model of this name. Raises `UnknownModel`, which lists the known names."""
    found = models.get(name)
    if found is None:
        raise UnknownModel(name, sorted(name for name in models if "@" not in name))
    return found


async def find_gateway_model(gateway: GatewayContext, request: Request, model: str | None) -> ModelInfo:
    """The model of this name, which must be ready. If `model` is None, the server's only model.

    Raises `MalformedRequest` if no model is named and there are several, `NotReady` or `UnknownModel`.
    """
    index = await gateway.service.model_index()
    if model is None:
        model = _only_one(index)
    info = find_ready(index, model)
    request.model_name = model
    return info


def not_ready(model: ServedModel) -> NotReady:
    """The error for a model that accepts no requests now."""
    return NotReady(f"{model.info.name} is not ready: {model.not_ready_reason or 'try again soon'}")


def stats_answer(info: ModelInfo, parts: Sequence[ModelStatistics]) -> dict[str, Any]:
    """The body of `GET …/stats`, from the statistics of all replicas that answered."""
    return {"model_stats": [merge(parts).as_dict(info.name, info.version)], "replicas": len(parts)}


def joined_stats(answers: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The body of `GET /v2/models/stats`, from those of several models."""
    entries = [entry for answer in answers for entry in answer["model_stats"]]
    return {"model_stats": entries, "replicas": max((each["replicas"] for each in answers), default=1)}


def find_ready(index: Sequence[ModelEntry], name: str, version: str = "") -> ModelInfo:
    """The model of this name, or its version, which must be ready.

    Raises `NotReady`, `UnknownModel`, or `NotFound` for a version that is not there.
    """
    found = find_version(index, name, version)
    if found is not None and found.state == "READY" and found.info is not None:
        return found.info
    raise why_not(name, index if found is None else [found])


def find_version(index: Sequence[ModelEntry], name: str, version: str) -> ModelEntry | None:
    """The entry of a model or of its version; None if there is no such model.

    Raises `NotFound` for a version that is not there.
    """
    for entry in index:
        if entry.name == name and entry.reason != UNLOADED:
            found = {each.version: each for each in entry.lines}
            if version and version not in found:
                raise no_version(name, version, list(found))
            return found[version] if version else entry
    return None


def no_version(name: str, version: str, there: Sequence[str]) -> NotFound:
    """The error for a version that a model does not have."""
    return NotFound(f"{name} has no version {version!r}; it has {', '.join(map(repr, there))}")


def why_not(model: str, index: Sequence[ModelEntry]) -> NotReady | ModelUnloaded | UnknownModel:
    """The error that says why a model accepts no requests."""
    for entry in index:
        if entry.name == model and entry.reason == UNLOADED:
            return ModelUnloaded(model)
        if entry.name == model:
            reason = (
                "no host answers for it" if entry.state == "READY" else entry.reason or entry.state.lower()
            )
            return NotReady(f"{model} is not ready: {reason}; try again soon")
    return UnknownModel(model, sorted(entry.name for entry in index))


def _only_one(index: Sequence[ModelEntry]) -> str:
    index = [entry for entry in index if entry.reason != UNLOADED]
    if len(index) == 1:
        return index[0].name
    names = ", ".join(sorted(entry.name for entry in index)) or "none"
    raise MalformedRequest(f"name a model: `model` in the body, or ?model=<name>; there are: {names}")
