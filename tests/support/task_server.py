"""A replica with real checkpoints in a process of their own, behind HTTP and gRPC on this machine."""

import asyncio
import socket
import threading

import uvicorn

from fewshard_serve.engine.settings import EngineSettings
from fewshard_serve.http.gateway import GatewayApp
from fewshard_serve.http.host import HostApp
from fewshard_serve.http.middleware import AccessMiddleware
from fewshard_serve.http.service import ModelEntry
from fewshard_serve.protocol.limits import Limits
from fewshard_serve.rayserve.deployment_plan import HostSpec, ModelSpec
from fewshard_serve.rayserve.replica import Replica
from fewshard_serve.rpc.inference import InferenceService
from fewshard_serve.rpc.server import start
from local_service import LocalService
from rpc_service import free_port

LIMITS = Limits()


class Gateway:
    """A gateway whose only host is in this process."""

    def __init__(self, models):
        self._models = models

    async def model_index(self):
        return [ModelEntry(name, "READY", info=model.info) for name, model in self._models.items()]

    async def ready(self):
        return True

    async def classify(self, model, request):
        return await self._models[model].classify(request)


class TaskServer:
    """`models`: directories by name; `options`: further fields of a model's specification, by its name."""

    def __init__(self, models, **options):
        specs = [
            ModelSpec(name, str(path), "cpu", "fp32", EngineSettings(), **options.get(name, {}))
            for name, path in models.items()
        ]
        self._spec = HostSpec("models", "/v2/models", tuple(specs), must_load=True)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        self.grpc_address = f"127.0.0.1:{free_port()}"
        self._is_up, self._failure = threading.Event(), None
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve()))
        self._thread.start()
        self._is_up.wait()
        if self._failure is not None:
            raise self._failure

    async def _serve(self):
        try:
            self.replica = await Replica.open(self._spec)
        except Exception as error:  # noqa: BLE001  raised again in the thread of the test
            self._failure = error
            self._is_up.set()
            return
        models, count = self.replica.models, self.replica.metrics.observe_request
        host = HostApp(LocalService(models), on_request=count)
        service = Gateway(models)
        gateway = GatewayApp(service, on_request=count)

        async def both(scope, receive, send):
            is_of_model = scope.get("path", "").startswith("/v2/models/")
            await (host if is_of_model else gateway)(scope, receive, send)

        inference = InferenceService(service, LIMITS, AccessMiddleware(), count)
        grpc = await start(inference, *_address(self.grpc_address), LIMITS.max_body_bytes)
        self._server = uvicorn.Server(uvicorn.Config(both, log_level="warning"))
        asyncio.get_running_loop().call_soon(self._is_up.set)
        await self._server.serve(sockets=[self._listener])
        await grpc.stop(None)
        await self.replica.finish_drain(5)

    def close(self):
        self._server.should_exit = True
        self._thread.join()


def _address(text):
    host, port = text.split(":")
    return host, int(port)
