"""What the two ASGI applications ask of whatever stands behind them; the Ray shell and tests implement it.

A call whose client has gone is cancelled; implementations need no other sign of it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from fewshard_core.values import ModelInfo
from fewshard_serve.auth import Tokens
from fewshard_serve.core import Caller, Classified, PredictionRequest
from fewshard_serve.errors import MalformedRequest, NotFound, NotReady, UnknownModel
from fewshard_serve.http.request import Request
from fewshard_serve.protocol.limits import Limits
from fewshard_serve.protocol.stats import ModelStatistics, merge

EXTENSIONS = ("binary_tensor_data", "classification", "statistics")
"""What server metadata advertises; the V2 protocol's own words."""


class RequestHook(Protocol):
    """Called once for each request for a prediction, after its answer is made.

    model: "unknown" where no such model is served, so that a caller cannot invent label values.
    protocol: the label of its route, or "v2_grpc".
    outcome: "ok" or the error's code.
    trace_id: empty where the request is not traced.
    """

    def __call__(
        self, model: str, protocol: str, outcome: str, seconds: float, trace_id: str = "", /
    ) -> None: ...


def ignore_request(model: str, protocol: str, outcome: str, seconds: float, trace_id: str = "", /) -> None:
    """The hook of those who count nothing."""


class Room(Protocol):
    """How much of a model may be in flight. Used on the event loop alone."""

    @property
    def limit_items(self) -> int:
        """The most there may be now."""

    def retry_after_s(self) -> float:
        """When one who finds no room should come back."""

    def note_refusals(self) -> None:
        """Requests found no room and were refused elsewhere."""


class ServedModel(Protocol):
    """One model on one replica."""

    @property
    def info(self) -> ModelInfo: ...

    @property
    def ready(self) -> bool: ...

    @property
    def not_ready_reason(self) -> str:
        """Why it is not ready; "" when it is."""

    @property
    def stats(self) -> ModelStatistics:
        """The HTTP layer adds requests; whoever runs the batches adds those."""

    @property
    def room(self) -> Room | None:
        """None where nothing limits what is in flight."""

    def check_room(self, caller: Caller) -> None:
        """Raise `Overloaded` where any request of the caller's would be refused; asked before it is read."""

    async def classify(self, request: PredictionRequest) -> Classified:
        """Raises Overloaded, DeadlineExceeded, NotReady or UnusableItem; cancelled when the caller goes."""

    def experts(self) -> dict[str, Any] | None:
        """Routing of the last window on this replica; None where there are no experts."""


class HostService(Protocol):
    """Everything one replica of a host offers. The merged answers speak for all its replicas."""

    def models(self) -> Mapping[str, ServedModel]: ...

    async def metrics_text(self, is_open_metrics: bool) -> bytes:
        """This replica's Prometheus text, or OpenMetrics without its last line."""

    async def merged_stats(self, model: str) -> dict[str, Any]:
        """`{"model_stats": [one entry], "replicas": how many spoke}`."""

    async def merged_experts(self, model: str) -> dict[str, Any] | None:
        """Routing over all replicas, with `replicas`: how many spoke; None where there are no experts."""

    async def place(self, model: str, wanted: dict[str, Any]) -> dict[str, Any]:
        """Plan another placement of the experts on every replica, or apply it.

        `wanted` holds the fields of a `PlacementRequest`, the answer those of a `PlacementChange`. Raises
        `NotFound` where the model is not sharded, `MalformedRequest` for what cannot be placed.
        """


@dataclass(frozen=True, slots=True)
class ModelEntry:
    """One line of the repository index; `info` is None until some replica has loaded the model."""

    name: str
    state: Literal["READY", "LOADING", "UNAVAILABLE"]
    version: str = "1"
    reason: str = ""
    info: ModelInfo | None = None


class GatewayService(Protocol):
    """What the gateway knows of all hosts."""

    async def model_index(self) -> Sequence[ModelEntry]:
        """Every model of the configuration. Asked on each request, so answered from memory."""

    async def ready(self) -> bool:
        """Whether every model can take requests."""

    async def classify(self, model: str, request: PredictionRequest) -> Classified:
        """Ask a model of the index, wherever it runs. Raises as `ServedModel.classify` does."""

    async def reload_tokens(self) -> int:
        """Have every replica of every host read its tokens again; how many have."""

    async def metrics(self, is_open_metrics: bool) -> bytes:
        """The union of every replica's Prometheus text, or OpenMetrics without its last line."""

    async def own_metrics(self, is_open_metrics: bool) -> bytes:
        """The gateway's own part of it."""

    async def metrics_targets(self) -> list[dict[str, Any]]:
        """Each replica's own metrics, as Prometheus' HTTP discovery lists them. Raises `NotFound` where they
        cannot be reached one by one."""


@dataclass(frozen=True, slots=True)
class HostContext:
    """What the handlers of a host's routes work with."""

    service: HostService
    limits: Limits


@dataclass(frozen=True, slots=True)
class GatewayContext:
    """What the handlers of the gateway's routes work with.

    tokens: those of this process; None where the server asks for none.
    openapi: the document, as JSON.
    """

    service: GatewayService
    limits: Limits
    tokens: Tokens | None
    openapi: bytes


def find_model(models: Mapping[str, ServedModel], name: str) -> ServedModel:
    """Raises `UnknownModel` naming those there are."""
    found = models.get(name)
    if found is None:
        raise UnknownModel(name, sorted(models))
    return found


def find_host_model(host: HostContext, request: Request) -> ServedModel:
    """The model that the path names. Raises `UnknownModel`, or `NotFound` for another version."""
    parameters = request.parameters
    model = find_model(host.service.models(), parameters["model"])
    request.model_name = model.info.name
    version = parameters.get("version")
    if version is not None and version != model.info.version:
        name = model.info.name
        raise NotFound(f"{name} has no version {version!r}; it has {model.info.version!r}")
    return model


async def find_gateway_model(gateway: GatewayContext, request: Request, model: str | None) -> ModelInfo:
    """A model that takes requests; the only one of a server that has but one where `model` is None.

    Raises `MalformedRequest` where there are several, `NotReady` or `UnknownModel`.
    """
    index = await gateway.service.model_index()
    if model is None:
        model = _only_one(index)
    info = find_ready(index, model)
    request.model_name = model
    return info


def not_ready(model: ServedModel) -> NotReady:
    """The error for a model that takes no requests now."""
    return NotReady(f"{model.info.name} is not ready: {model.not_ready_reason or 'try again soon'}")


def stats_answer(info: ModelInfo, parts: Sequence[ModelStatistics]) -> dict[str, Any]:
    """The body of `GET …/stats` from the statistics of every replica that spoke."""
    return {"model_stats": [merge(parts).as_dict(info.name, info.version)], "replicas": len(parts)}


def find_ready(index: Sequence[ModelEntry], name: str) -> ModelInfo:
    """A model that takes requests. Raises `NotReady` or `UnknownModel`."""
    for entry in index:
        if entry.name == name and entry.state == "READY" and entry.info is not None:
            return entry.info
    raise why_not(name, index)


def why_not(model: str, index: Sequence[ModelEntry]) -> NotReady | UnknownModel:
    """Why a model takes no requests."""
    for entry in index:
        if entry.name == model:
            reason = (
                "no host answers for it" if entry.state == "READY" else entry.reason or entry.state.lower()
            )
            return NotReady(f"{model} is not ready: {reason}; try again soon")
    return UnknownModel(model, sorted(entry.name for entry in index))


def _only_one(index: Sequence[ModelEntry]) -> str:
    if len(index) == 1:
        return index[0].name
    names = ", ".join(sorted(entry.name for entry in index)) or "none"
    raise MalformedRequest(f"name a model: `model` in the body; there are: {names}")
