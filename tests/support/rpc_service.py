"""The gRPC service on a port of this machine, over models that need no Ray."""

import asyncio
import socket
import threading

import grpc
import numpy as np
import tritonclient.grpc as triton
from tritonclient.grpc import service_pb2_grpc

from fewshard_core.values import ModelInfo
from fewshard_serve.core import BatchStats, Classified, Timings
from fewshard_serve.errors import (
    ChangeRefused,
    DeadlineExceeded,
    InternalError,
    NotReady,
    Overloaded,
    TooLarge,
    UnusableItem,
)
from fewshard_serve.http.middleware import AccessMiddleware
from fewshard_serve.http.service import ModelEntry, stats_answer
from fewshard_serve.protocol.limits import Limits
from fewshard_serve.protocol.stats import ModelStatistics
from fewshard_serve.rpc.inference import InferenceService
from fewshard_serve.rpc.server import start

LIMITS = Limits(max_items=64, max_body_bytes=100_000)
RAISED = {
    "overloaded": Overloaded("too much", 1.25),
    "late": DeadlineExceeded("late"),
    "unusable": UnusableItem(0, "no"),
    "draining": NotReady("draining"),
    "broken": InternalError("broken"),
    "large": TooLarge("large"),
    "bug": KeyError("secret detail"),
}


def info_of(name, task):
    return ModelInfo(
        name, task, "dense", ("long", "short"), "single_label_classification", "x", "fp32", "cpu", 128
    )


class Service:
    """Two models; the first logit of a text is its length."""

    def __init__(self):
        self.calls, self.was_cancelled = [], threading.Event()
        self.is_ready = False

    async def model_index(self):
        ready = [ModelEntry(name, "READY", info=info_of(name, name)) for name in ("text", "image")]
        return [*ready, ModelEntry("slow", "LOADING", reason="reading weights")]

    async def ready(self):
        return self.is_ready

    async def classify(self, model, request):
        inputs = request.inputs
        self.calls.append((model, inputs, request.truncate, request.timeout_s, request.caller))
        lengths = []
        for one in inputs:
            text = getattr(one, "text", "")
            if text in RAISED:
                raise RAISED[text]
            if text == "hang":
                await self._hang()
            lengths.append([np.nan if text == "nan" else len(text), 0])
        return Classified(np.array(lengths, np.float32), 5 * len(inputs), Timings(0.001, 0.002, 0.003))

    async def change(self, action, model):
        if model not in ("text", "image"):
            raise ChangeRefused(f"{model} is not {action}ed: no model {model!r}")
        self.calls.append((action, model))

    async def merged_stats(self, model):
        seen = ModelStatistics()
        seen.add_request(0.006, Timings(0.001, 0.002, 0.003), 0.0)
        seen.add_batch(BatchStats(model, 2, 10, 0, 0.003, (0.0, 0.0)))
        return stats_answer(info_of(model, model), [seen])

    async def _hang(self):
        try:
            await asyncio.sleep(30)
        except asyncio.CancelledError:
            self.was_cancelled.set()
            raise


class Running:
    """The service on an event loop in a thread."""

    def __init__(self, doors=None, limits=LIMITS, bodies=None):
        self.service, self.counted = Service(), []
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        inference = InferenceService(
            self.service,
            limits,
            doors or AccessMiddleware(),
            lambda *seen: self.counted.append(seen[:3]),
            bodies,
        )
        self.port = free_port()
        self._server = self.run(start(inference, "127.0.0.1", self.port, limits.max_body_bytes))

    @property
    def address(self):
        return f"127.0.0.1:{self.port}"

    def run(self, work):
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(10)

    def close(self):
        self.run(self._server.stop(None))
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._loop.close()


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def text_input(*texts, name="text", shape=None):
    tensor = triton.InferInput(name, list(shape or [len(texts)]), "BYTES")
    tensor.set_data_from_numpy(np.array([text.encode() for text in texts], dtype=object).reshape(shape or -1))
    return tensor


def stub(running):
    return service_pb2_grpc.GRPCInferenceServiceStub(grpc.insecure_channel(running.address))
