"""Both applications over a real engine and models of numpy, in this process or on a port of this machine.

FEWSHARD_FUZZ_EXAMPLES sets how many examples each test makes up (default 100); `make fuzz` makes many more.
"""

import asyncio
import os
import socket
import threading

import numpy as np
import pytest
import uvicorn
from hypothesis import HealthCheck, settings

from fewshard_core.values import EncodedImage, Item, ModelInfo, ModelOutput, TextInput
from fewshard_models.classifier.base import Classifier
from fewshard_models.classifier.image_files import ImageError, decode_image
from fewshard_serve.engine import Engine
from fewshard_serve.errors import UnusableItem
from fewshard_serve.http.gateway import GatewayApp
from fewshard_serve.http.host import HostApp
from fewshard_serve.http.service import ModelEntry, stats_answer
from fewshard_serve.protocol.stats import ModelStatistics
from local_service import LocalService

settings.register_profile(
    "fuzz",
    max_examples=int(os.environ.get("FEWSHARD_FUZZ_EXAMPLES", "100")),
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)


def info_of(name, task):
    return ModelInfo(
        name, task, "dense", ("long", "short"), "single_label_classification", "x", "fp32", "cpu", 128
    )


class Lengths(Classifier):
    """The first logit of a text is its length, of an image its height."""

    def __init__(self, info):
        self.info = info

    def estimate_tokens(self, inputs):
        return sum(len(one.text) for one in inputs if isinstance(one, TextInput))

    def costs(self, inputs):
        return [1] * len(inputs)

    def prepare(self, inputs, truncate=True):
        return [Item(self._size(index, one), 1) for index, one in enumerate(inputs)]

    def run(self, items):
        return ModelOutput(np.array([[item.features, 0] for item in items], np.float32))

    def self_check(self):
        return None

    def _size(self, index, one):
        if isinstance(one, TextInput):
            return len(one.text)
        if isinstance(one, EncodedImage):
            try:
                return decode_image(one.data, one.max_pixels).shape[0]
            except ImageError as error:
                raise UnusableItem(index, str(error)) from error
        return one.pixels.shape[0]


class Served:
    """What a replica wraps round its engine: one model of the host."""

    ready, not_ready_reason = True, ""

    def __init__(self, engine, info):
        self.info, self.stats, self._engine = info, ModelStatistics(), engine

    room = None

    def check_room(self, caller):
        self._engine.check_room(self.info.name, caller)

    async def classify(self, request):
        return await self._engine.classify(self.info.name, request)

    def experts(self):
        return None


class OneGateway:
    def __init__(self, models):
        self._models = models

    async def model_index(self):
        return [ModelEntry(name, "READY", info=model.info) for name, model in self._models.items()]

    async def ready(self):
        return True

    async def classify(self, model, request):
        return await self._models[model].classify(request)

    async def merged_stats(self, model):
        served = self._models[model]
        return stats_answer(served.info, [served.stats])

    async def reload_tokens(self):
        return 0

    async def metrics(self, is_open_metrics):
        return b""

    own_metrics = metrics

    async def metrics_targets(self):
        return [{"targets": ["127.0.0.1:8000"], "labels": {"replica": "r"}}]


class Both:
    """The host below /v2/models and the gateway elsewhere, as the proxy routes them."""

    def __init__(self):
        infos = [info_of("text", "text"), info_of("image", "image")]
        self.engine = Engine([Lengths(info) for info in infos], {}, lambda stats: None)
        models = {info.name: Served(self.engine, info) for info in infos}
        self._host, self._gateway = HostApp(LocalService(models)), GatewayApp(OneGateway(models))

    async def __call__(self, scope, receive, send):
        app = self._host if scope.get("path", "").startswith("/v2/models/") else self._gateway
        await app(scope, receive, send)


@pytest.fixture(scope="session")
def address():
    """host:port of such a server on its own thread and event loop."""
    listener = socket.create_server(("127.0.0.1", 0))
    started, stop = threading.Event(), threading.Event()

    async def serve():
        app = Both()
        server = uvicorn.Server(uvicorn.Config(app, lifespan="off", log_level="error"))
        serving = asyncio.create_task(server.serve(sockets=[listener]))
        while not server.started:
            await asyncio.sleep(0.01)
        started.set()
        await asyncio.to_thread(stop.wait)
        server.should_exit = True
        await serving
        await app.engine.drain(5)

    thread = threading.Thread(target=lambda: asyncio.run(serve()), daemon=True)
    thread.start()
    assert started.wait(30)
    yield f"127.0.0.1:{listener.getsockname()[1]}"
    stop.set()
    thread.join(30)
