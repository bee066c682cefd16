"""The console over both ASGI applications and real models in this process, and a headless Chromium.

Only Ray and HAProxy are missing from what a user runs; `test_console_served` has these.
"""

import asyncio
import os
import shutil
import socket
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import uvicorn

from fewshard_core.values import ExpertCounts, Item, ModelInfo, ModelOutput
from fewshard_models.classifier.base import Classifier
from fewshard_serve.backends.load import load_model
from fewshard_serve.core import GroupState, PredictionRequest
from fewshard_serve.engine.settings import EngineSettings
from fewshard_serve.errors import ServeError
from fewshard_serve.http.gateway import GatewayApp
from fewshard_serve.http.host import HostApp
from fewshard_serve.http.middleware import AccessMiddleware, AccessSettings
from fewshard_serve.protocol.limits import Limits
from fewshard_serve.rayserve.deployment_plan import HostSpec, ModelSpec
from fewshard_serve.rayserve.replica import Replica
from local_service import LocalService

EVIL = "<img src=x onerror=document.title='run'>"
WAIT_S = 30


class LabelsModel(Classifier):
    """Numpy alone. As many labels as asked for, the first of them HTML; `gate` keeps its runner busy."""

    def __init__(self, name: str, num_labels: int, kind: str = "dense") -> None:
        labels = (EVIL, *(f"label {index}" for index in range(1, num_labels)))
        self.info = ModelInfo(
            name, "text", kind, labels, "single_label_classification", "fake", "fp32", "cpu", 128
        )
        self.gate = threading.Event()
        self.gate.set()
        self.is_running = threading.Event()
        self.num_rows = 0

    def estimate_tokens(self, inputs: Any) -> int:
        return len(inputs)

    def costs(self, inputs: Any) -> list[int]:
        return [1] * len(inputs)

    def prepare(self, inputs: Any, truncate: bool = True) -> list[Item]:
        return [Item(one.text, 1) for one in inputs]

    def run(self, items: Any) -> ModelOutput:
        self.is_running.set()
        self.gate.wait(WAIT_S)
        self.num_rows += len(items)
        return ModelOutput(np.tile(-np.arange(len(self.info.labels), dtype=np.float32), (len(items), 1)))


class ShardedModel(LabelsModel):
    """What a model over two shards says of itself."""

    def group(self) -> GroupState:
        return GroupState(2, 2, 3, 1, 4, False, (((0, 1, 2), (3, 4)), ((0, 2), (1, 3, 4))))

    def expert_counts(self) -> ExpertCounts:
        tokens = np.array([[4, 3, 2, 1, 0], [2, 2, 2, 2, 2]]) * self.num_rows
        shards = np.array([[9, 1], [4, 6]]) * self.num_rows
        rows = tokens.sum(axis=1)
        return ExpertCounts(tokens, tokens * 0.5, rows * 1.0, rows, 1, shards)


class Gateway:
    """A `GatewayService` over one `Replica` of this process; `prices` are further lines of its metrics."""

    def __init__(self, hosting: Replica, prices: str) -> None:
        self._hosting = hosting
        self._prices = prices.encode()

    async def model_index(self) -> Any:
        return self._hosting.entries()

    async def ready(self) -> bool:
        return True

    async def classify(self, model: str, request: PredictionRequest) -> Any:
        answer = await self._hosting.classify(model, request)
        if isinstance(answer, ServeError):
            raise answer
        return answer

    async def metrics(self, *_: Any) -> bytes:
        return await asyncio.to_thread(self._hosting.metrics.render, {}) + self._prices


class ConsoleServer:
    """Serves until `stop`; `start` may be called again, for the same port."""

    def __init__(
        self,
        models: list[Classifier],
        *,
        tokens_file: str = "",
        limits: Limits = Limits(),  # noqa: B008  it is frozen
        settings: EngineSettings = EngineSettings(),  # noqa: B008
        prices: str = "",
    ) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self._models = models
        guards = not tokens_file  # as `fewshard serve` on a laptop
        settings_of_doors = AccessSettings(tokens_file, limits, guards_pages=guards, is_on_loopback=True)
        self._doors = AccessMiddleware(settings_of_doors)
        self._limits = limits
        self._settings = settings
        self._prices = prices
        self.start()

    def start(self) -> None:
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve()), daemon=True)
        self._server: uvicorn.Server | None = None
        self._thread.start()
        give_up_at = time.monotonic() + WAIT_S
        while self._server is None or not self._server.started:
            assert time.monotonic() < give_up_at, "the console's server did not start"
            time.sleep(0.01)

    def stop(self) -> None:
        assert self._server is not None
        self._server.should_exit = self._server.force_exit = True
        self._thread.join(WAIT_S)

    async def _serve(self) -> None:
        specs = tuple(ModelSpec(model.info.name, "", "cpu", "fp32", self._settings) for model in self._models)
        hosting = Replica(HostSpec("models", "/v2/models", specs), self._models, None)
        count = hosting.metrics.observe_request
        shared: dict[str, Any] = {"limits": self._limits, "doors": self._doors, "on_request": count}
        host = HostApp(LocalService(hosting.models), **shared)
        gateway = GatewayApp(Gateway(hosting, self._prices), **shared)  # type: ignore[arg-type]

        async def app(scope: Any, receive: Any, send: Any) -> None:
            is_for_host = scope.get("path", "").startswith("/v2/models/")
            await (host if is_for_host else gateway)(scope, receive, send)

        config = uvicorn.Config(app, "127.0.0.1", self.port, log_level="warning", lifespan="off")
        self._server = uvicorn.Server(config)
        await self._server.serve()
        await hosting.finish_drain(1)


@pytest.fixture(scope="session")
def zoo_models() -> list[Classifier]:
    names = ("sst2-dense", "sst2-moe", "cifar10-dense")
    return [load_model(name, f"zoo:{name}", "cpu", "fp32") for name in names]


@pytest.fixture(scope="module")
def serve() -> Iterator[Callable[..., ConsoleServer]]:
    """`serve(models, …)`: a server that ends with the module."""
    servers: list[ConsoleServer] = []

    def start(models: list[Classifier], **how: Any) -> ConsoleServer:
        servers.append(ConsoleServer(models, **how))
        return servers[-1]

    yield start
    for server in servers:
        server.stop()


@pytest.fixture(scope="session")
def labels_model() -> type[LabelsModel]:
    return LabelsModel


@pytest.fixture(scope="session")
def sharded_model() -> type[ShardedModel]:
    return ShardedModel


@pytest.fixture(scope="session")
def evil() -> str:
    return EVIL


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """A headless Chromium: `FEWSHARD_CHROMIUM`, or the one on the path.

    It ends with its module: playwright runs an event loop in this thread, where other tests run theirs.
    """
    api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    path = os.environ.get("FEWSHARD_CHROMIUM") or shutil.which("chromium") or shutil.which("google-chrome")
    if path is None:
        pytest.skip("no chromium: install one, or name it in FEWSHARD_CHROMIUM")
    with api.sync_playwright() as playwright:
        flags = ["--no-sandbox", "--disable-background-networking"]
        flags.append("--host-resolver-rules=MAP evil.example 127.0.0.1")
        started = playwright.chromium.launch(executable_path=path, args=flags)
        yield started
        started.close()


@pytest.fixture
def open_page(browser: Any) -> Iterator[Callable[..., Any]]:
    """`open_page(url, **context)`: a page of its own whose faults fail the test at its end.

    `page.faults` gathers what the policy refused and what scripts threw; a test that means to empties it.
    """
    pages: list[Any] = []

    def open_at(url: str, **context: Any) -> Any:
        page = browser.new_context(**{"viewport": {"width": 1280, "height": 900}, **context}).new_page()
        page.set_default_timeout(1000 * WAIT_S)
        page.faults = []
        page.requested = []
        page.on("pageerror", lambda error: page.faults.append(str(error)))
        page.on("console", lambda message: _note(page, message))
        page.on("request", lambda request: page.requested.append(request.url))
        pages.append(page)
        page.goto(url, wait_until="load")
        return page

    yield open_at
    faults = [fault for page in pages for fault in page.faults]
    for page in pages:
        page.context.close()
    assert faults == []


def _note(page: Any, message: Any) -> None:
    # The browser itself reports answers such as 429; these are the console's to show.
    if message.type == "error" and "Failed to load resource" not in message.text:
        page.faults.append(message.text)
