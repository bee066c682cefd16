"""The unchanged tritonclient against a host and the gateway on uvicorn, with the real engine behind them."""

import asyncio
import json
import socket
import threading
from collections.abc import Iterator, Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import uvicorn

from fewshard_core.values import Input, Item, ModelInfo, ModelOutput, PixelArray, TextInput
from fewshard_models.classifier.base import Classifier
from fewshard_serve.core import BatchStats, Caller, Classified, PredictionRequest
from fewshard_serve.engine.engine import Engine
from fewshard_serve.errors import UnusableItem
from fewshard_serve.http.gateway import GatewayApp
from fewshard_serve.http.host import HostApp
from fewshard_serve.http.service import ModelEntry
from fewshard_serve.protocol.stats import ModelStatistics
from local_service import LocalService

tritonclient = pytest.importorskip("tritonclient.http")

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


class Lengths(Classifier):
    """Logits [length of the text or mean of the pixels, 0]."""

    def __init__(self, info: ModelInfo) -> None:
        self.info = info

    def estimate_tokens(self, inputs: Sequence[Input]) -> int:
        return len(inputs)

    def prepare(self, inputs: Sequence[Input], truncate: bool = True) -> list[Item]:
        for index, each in enumerate(inputs):
            if isinstance(each, TextInput) and each.text == "bad":
                raise UnusableItem(index, "it says so")
        return [Item(self._size(each), 1) for each in inputs]

    def run(self, items: Sequence[Item]) -> ModelOutput:
        return ModelOutput(np.array([[item.features, 0.0] for item in items], np.float32))

    def _size(self, each: Input) -> float:
        return float(each.pixels.mean()) if isinstance(each, PixelArray) else len(getattr(each, "text", ""))


class EngineModel:
    """What a replica wraps round its engine: one model of the host."""

    def __init__(self, engine: Engine, info: ModelInfo, stats: ModelStatistics) -> None:
        self.info, self.stats, self.ready, self.not_ready_reason = info, stats, True, ""
        self._engine = engine

    room = None

    def check_room(self, caller: Caller) -> None:
        self._engine.check_room(self.info.name, caller)

    async def classify(self, request: PredictionRequest) -> Classified:
        return await self._engine.classify(self.info.name, request)

    def experts(self) -> dict[str, Any] | None:
        return None


class OneGateway:
    """A gateway whose only host is in this process."""

    def __init__(self, models: dict[str, EngineModel]) -> None:
        self._models = models

    async def model_index(self) -> list[ModelEntry]:
        return [ModelEntry(name, "READY", info=model.info) for name, model in self._models.items()]

    async def ready(self) -> bool:
        return True

    async def classify(self, model: str, request: PredictionRequest) -> Classified:
        return await self._models[model].classify(request)

    async def metrics(self) -> bytes:
        return b""


def info_of(name: str, task: Any) -> ModelInfo:
    return ModelInfo(
        name, task, "dense", ("long", "short"), "single_label_classification", "x", "fp32", "cpu", 128
    )


class Both:
    """The host below /v2/models and the gateway elsewhere, as a proxy would route them."""

    def __init__(self) -> None:
        infos = [info_of("text", "text"), info_of("image", "image")]
        stats = {info.name: ModelStatistics() for info in infos}

        def on_batch(batch: BatchStats) -> None:
            stats[batch.model].add_batch(batch)

        self.engine = Engine([Lengths(info) for info in infos], {}, on_batch)
        models = {info.name: EngineModel(self.engine, info, stats[info.name]) for info in infos}
        self._host, self._gateway = HostApp(LocalService(models)), GatewayApp(OneGateway(models))

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        app = self._host if scope.get("path", "").startswith("/v2/models/") else self._gateway
        await app(scope, receive, send)


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    """host:port of a server on its own thread and event loop."""
    listener = socket.create_server(("127.0.0.1", 0))
    started, handle = threading.Event(), SimpleNamespace()

    async def serve() -> None:
        both = Both()
        handle.server = uvicorn.Server(uvicorn.Config(both, log_level="warning"))
        handle.loop = asyncio.get_running_loop()
        started.set()
        await handle.server.serve(sockets=[listener])
        await both.engine.drain(5)

    thread = threading.Thread(target=asyncio.run, args=(serve(),), daemon=True)
    thread.start()
    assert started.wait(10)
    yield f"127.0.0.1:{listener.getsockname()[1]}"
    handle.server.should_exit = True
    thread.join(10)
    assert not thread.is_alive()


@pytest.fixture
def client(address: str) -> Iterator[Any]:
    with tritonclient.InferenceServerClient(address) as connected:
        yield connected


def texts(*values: str, binary: bool = True) -> Any:
    tensor = tritonclient.InferInput("text", [len(values)], "BYTES")
    return tensor.set_data_from_numpy(
        np.array([value.encode() for value in values], object), binary_data=binary
    )


def test_health_metadata_and_index(client: Any) -> None:
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready("text")
    assert client.is_model_ready("text", "1")
    assert not client.is_model_ready("text", "2")
    assert not client.is_model_ready("nope")
    assert "binary_tensor_data" in client.get_server_metadata()["extensions"]
    assert client.get_model_metadata("text")["inputs"][0]["name"] == "text"
    assert client.get_model_config("image")["task"] == "image"
    assert [entry["name"] for entry in client.get_model_repository_index()] == ["text", "image"]


@pytest.mark.parametrize("binary", [True, False])
def test_texts_with_default_outputs(client: Any, binary: bool) -> None:
    result = client.infer("text", [texts("abc", "", "grün", binary=binary)], request_id="r1")
    assert result.get_response()["id"] == "r1"
    assert result.as_numpy("logits").tolist() == [[3.0, 0.0], [0.0, 0.0], [4.0, 0.0]]
    assert result.as_numpy("scores").sum(axis=1) == pytest.approx(1.0)
    assert result.as_numpy("label").tolist() == [b"long", b"long", b"long"]


@pytest.mark.parametrize("binary", [True, False])
def test_outputs_as_asked_for(client: Any, binary: bool) -> None:
    asked = [
        tritonclient.InferRequestedOutput("scores", binary_data=binary, class_count=1),
        tritonclient.InferRequestedOutput("logits", binary_data=not binary),
    ]
    result = client.infer("text", [texts("abc", "x")], outputs=asked, timeout=5_000_000)
    best = [each.decode() if binary else each for each in result.as_numpy("scores").ravel()]
    assert best == ["0.952574:0:long", "0.731059:0:long"]
    assert result.as_numpy("logits").tolist() == [[3.0, 0.0], [1.0, 0.0]]
    assert result.as_numpy("label") is None


def test_pixels(client: Any) -> None:
    pixels = np.stack([np.full((5, 4, 3), value, np.uint8) for value in (7, 200)])
    tensor = tritonclient.InferInput("image", pixels.shape, "UINT8").set_data_from_numpy(pixels)
    assert client.infer("image", [tensor]).as_numpy("logits")[:, 0].tolist() == [7.0, 200.0]
    halves = np.full((1, 3, 4, 4), 0.5, np.float16)
    tensor = tritonclient.InferInput("pixel_values", halves.shape, "FP16").set_data_from_numpy(halves)
    assert client.infer("image", [tensor]).as_numpy("logits")[0, 0] == 0.5


@pytest.mark.parametrize("sent", [None, "gzip", "deflate"])
@pytest.mark.parametrize("received", [None, "gzip", "deflate"])
def test_compression_both_ways(client: Any, sent: str | None, received: str | None) -> None:
    result = client.infer(
        "text",
        [texts("abc")],
        request_compression_algorithm=sent,
        response_compression_algorithm=received,
    )
    assert result.as_numpy("logits").tolist() == [[3.0, 0.0]]


def test_errors_reach_the_caller_in_words(client: Any) -> None:
    for model, tensor, message in (
        ("nope", texts("a"), "no model named 'nope'"),
        ("text", texts("a", "bad"), "item 1: it says so"),
        ("image", texts("a"), "takes no input 'text'"),
    ):
        with pytest.raises(tritonclient.InferenceServerException, match=message):
            client.infer(model, [tensor], response_compression_algorithm="gzip")


def test_a_raw_body_made_by_the_client(client: Any) -> None:
    body, size = client.generate_request_body([texts("abc")])
    response = client._post("v2/models/text/infer", body, {"Inference-Header-Content-Length": size}, None)
    assert response.status_code == 200
    assert json.loads(response.read(int(response["inference-header-content-length"])))["model_name"] == "text"


def test_many_calls_at_once_and_the_statistics(address: str) -> None:
    with tritonclient.InferenceServerClient(address, concurrency=8) as client:
        before = client.get_inference_statistics("text")["model_stats"][0]
        pending = [client.async_infer("text", [texts("x" * n, "y")]) for n in range(40)]
        lengths = [each.get_result().as_numpy("logits")[0, 0] for each in pending]
        after = client.get_inference_statistics("text")["model_stats"][0]
    assert lengths == list(range(40))
    assert after["inference_count"] - before["inference_count"] == 80
    done = [stats["inference_stats"]["success"]["count"] for stats in (before, after)]
    assert done[1] - done[0] == 40
    assert after["execution_count"] > before["execution_count"]
    assert after["last_inference"] > 0
