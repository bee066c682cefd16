"""Fake models behind the two ASGI applications, and calls without a network."""

import asyncio
from collections.abc import Callable, Sequence
from typing import Any

import httpx
import numpy as np
import pytest

from fewshard_core.values import ModelInfo, Task, TextInput
from fewshard_serve.core import Caller, Classified, PredictionRequest, Timings
from fewshard_serve.errors import (
    CallerGone,
    ChangeRefused,
    ConfigError,
    DeadlineExceeded,
    Forbidden,
    InternalError,
    MalformedRequest,
    NotReady,
    Overloaded,
    ServeError,
    Unauthorized,
    UnknownModel,
    UnusableItem,
)
from fewshard_serve.http.asgi import App
from fewshard_serve.http.gateway import GatewayApp
from fewshard_serve.http.host import HostApp
from fewshard_serve.http.service import ModelEntry, Room, stats_answer
from fewshard_serve.protocol.limits import Limits
from fewshard_serve.protocol.stats import ModelStatistics
from local_service import LocalService

LIMITS = Limits(max_body_bytes=200_000, max_items=64, max_text_bytes=10_000)

RAISED: dict[str, Exception] = {
    "overloaded": Overloaded("too much work is in flight", 1.2),
    "overloaded a little": Overloaded("too much work is in flight", 0.001),
    "late": DeadlineExceeded("the deadline passed"),
    "unusable": UnusableItem(3, "it cannot be used"),
    "draining": NotReady("draining"),
    "broken": InternalError("the model failed"),
    "bug": KeyError("secret detail"),
    "config": ConfigError("no error of a request"),
    "unauthorized": Unauthorized("no token"),
    "forbidden": Forbidden("no scope"),
    "gone": CallerGone("gone"),
    "malformed": MalformedRequest("not so"),
    "unknown": UnknownModel("x", ["y"]),
}
"""What a fake model raises for a text."""


def info_of(name: str, task: Task = "text", labels: Sequence[str] = ("negative", "positive")) -> ModelInfo:
    return ModelInfo(
        name=name,
        task=task,
        kind="moe",
        labels=tuple(labels),
        problem_type="single_label_classification",
        architecture="fake",
        dtype="fp32",
        device="cpu",
        max_tokens=128,
        card={"accuracy": 0.914, "parameters_total": 4_386_178, "parameters_active": 1_200_000, "macs": 9e8},
    )


class FakeModel:
    """The first logit of a text is its length. `calls` lists what was asked; `hold` keeps answers back."""

    def __init__(self, info: ModelInfo) -> None:
        self.info = info
        self.not_ready_reason = ""
        self.stats = ModelStatistics()
        self.routing: dict[str, Any] | None = None
        self.calls: list[dict[str, Any]] = []
        self.callers: list[Caller] = []
        self.is_full = False
        self.room: Room | None = None
        self.hold: asyncio.Event | None = None
        self.was_cancelled = False

    @property
    def ready(self) -> bool:
        return not self.not_ready_reason

    def check_room(self, caller: Caller) -> None:
        if self.is_full:
            raise Overloaded("no room", 3.2)

    async def classify(self, request: PredictionRequest) -> Classified:
        inputs = request.inputs
        asked = {"inputs": list(inputs), "truncate": request.truncate, "timeout_s": request.timeout_s}
        self.calls.append(asked)
        self.callers.append(request.caller)
        texts = [each.text if isinstance(each, TextInput) else "" for each in inputs]
        for text in texts:
            if text in RAISED:
                raise RAISED[text]
        await self._wait()
        logits = np.zeros((len(inputs), len(self.info.labels)), np.float32)
        logits[:, 0] = [np.nan if text == "nan" else len(text) for text in texts]
        return Classified(logits, num_tokens=5 * len(inputs), timings=Timings(0.001, 0.002, 0.003))

    def experts(self) -> dict[str, Any] | None:
        return self.routing

    async def _wait(self) -> None:
        try:
            if self.hold is not None:
                await self.hold.wait()
        except asyncio.CancelledError:
            self.was_cancelled = True
            raise


class FakeGatewayService:
    """Models by name, whether their host is up or not."""

    def __init__(self, models: dict[str, FakeModel], waiting: Sequence[ModelEntry] = ()) -> None:
        self.models = models
        self.waiting = waiting
        self.changes: list[tuple[str, str]] = []

    async def model_index(self) -> list[ModelEntry]:
        served = [ModelEntry(name, "READY", info=model.info) for name, model in self.models.items()]
        return [*served, *self.waiting]

    async def ready(self) -> bool:
        return not self.waiting

    async def classify(self, model: str, request: PredictionRequest) -> Classified:
        return await self.models[model].classify(request)

    async def merged_stats(self, model: str) -> dict[str, Any]:
        served = self.models[model]
        return stats_answer(served.info, [served.stats])

    async def change(self, action: str, model: str) -> None:
        if model not in self.models:
            raise ChangeRefused(f"{model} is not {action}ed: no model {model!r}")
        self.changes.append((action, model))

    async def reload_tokens(self) -> int:
        return len(self.models)

    async def metrics(self, is_open_metrics: bool) -> bytes:
        return b"fewshard_model_info 1\n"

    async def own_metrics(self, is_open_metrics: bool) -> bytes:
        return b"fewshard_build_info 1\n"

    async def metrics_targets(self) -> list[dict[str, Any]]:
        return [{"targets": ["10.0.0.7:30001"], "labels": {"__metrics_path__": "/v2/models/metrics"}}]


Call = Callable[..., httpx.Response]
Counted = list[tuple[str, str, str]]


@pytest.fixture
def text_model() -> FakeModel:
    return FakeModel(info_of("sst2"))


@pytest.fixture
def image_model() -> FakeModel:
    return FakeModel(info_of("cifar", "image", ["cat", "dog", "ship"]))


@pytest.fixture
def counted_requests() -> Counted:
    """What the hook was told: model, protocol, outcome."""
    return []


@pytest.fixture
def host(text_model: FakeModel, image_model: FakeModel, counted_requests: Counted) -> HostApp:
    served = {model.info.name: model for model in (text_model, image_model)}
    service = LocalService(served, metrics=b"fewshard_queue_items 1\n")
    return HostApp(service, limits=LIMITS, on_request=lambda *seen: counted_requests.append(seen[:3]))


@pytest.fixture
def gateway(text_model: FakeModel, image_model: FakeModel, counted_requests: Counted) -> GatewayApp:
    served = {model.info.name: model for model in (text_model, image_model)}
    waiting = [ModelEntry("slow", "LOADING", reason="reading weights")]
    service = FakeGatewayService(served, waiting)
    return GatewayApp(service, limits=LIMITS, on_request=lambda *seen: counted_requests.append(seen[:3]))


@pytest.fixture
def call() -> Call:
    """`call(app, method, path, **httpx arguments)`: one request over ASGI, with no default headers."""

    def send(app: App, method: str, path: str, *, root_path: str = "", **request: Any) -> httpx.Response:
        transport = httpx.ASGITransport(app, root_path=root_path)

        async def once() -> httpx.Response:
            async with httpx.AsyncClient(transport=transport, base_url="http://server") as client:
                client.headers.clear()
                return await client.request(method, path, **request)

        return asyncio.run(once())

    return send


@pytest.fixture
def raised() -> dict[str, Exception]:
    return RAISED


@pytest.fixture
def error_kinds() -> list[type[ServeError]]:
    """Every error of the tree, however deep."""

    def below(kind: type[ServeError]) -> list[type[ServeError]]:
        return [kind, *(each for child in kind.__subclasses__() for each in below(child))]

    return [kind for kind in below(ServeError) if kind.__module__ == "fewshard_serve.errors"]
