"""Plain Ray Serve: `@serve.batch` and the transformers pipeline; runs in Ray Serve's own environment."""

import json
import os
import signal
import threading

import ray
from ray import serve
from starlette.requests import Request

SETTINGS = json.loads(os.environ["PEER_SETTINGS"])
TUNED = SETTINGS["batch"] is not None
BATCHING = (
    {"max_batch_size": SETTINGS["batch"], "batch_wait_timeout_s": SETTINGS["wait_ms"] / 1000} if TUNED else {}
)
DEPLOYMENT = {
    "max_ongoing_requests": 1000,
    "num_replicas": SETTINGS["workers"],
    "ray_actor_options": {"num_cpus": SETTINGS["threads"]},
}


@serve.deployment(**(DEPLOYMENT if TUNED else {}))
class Classifier:
    def __init__(self):
        import torch
        from transformers import pipeline

        dtype = getattr(torch, SETTINGS["torch_dtype"])
        self.pipe = pipeline("text-classification", SETTINGS["model"], dtype=dtype, device="cpu")
        self.options = {"batch_size": SETTINGS["batch"]} if TUNED else {}

    @serve.batch(**BATCHING)
    async def classify(self, texts):
        return self.pipe(texts, **self.options)

    async def __call__(self, request: Request):
        return await self.classify((await request.json())["text"])


if __name__ == "__main__":
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    ray.init(address="local", include_dashboard=False, _node_ip_address="127.0.0.1")
    serve.start(http_options={"host": "127.0.0.1", "port": int(SETTINGS["port"])})
    serve.run(Classifier.bind(), route_prefix="/")
    stop.wait()
    serve.shutdown()
    ray.shutdown()
