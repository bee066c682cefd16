"""What our ASGI layer and Starlette's cost for the same request, in this process and without a network.

Each application finds a model's route, gives the request an id, lets the caller in, reads and parses a small
JSON body under limits, and answers in JSON. The checks are our own functions in all of them; what differs is
the layer: request, headers, routing, errors, response. "router" is Starlette without its two default
middlewares. Rounds alternate between the applications.

    python benchmarks/asgi_layer.py [--rounds 31] [--requests 2000]
"""

import argparse
import asyncio
import json
import statistics
import time
from collections.abc import Awaitable, Callable
from typing import Any

from pydantic_core import from_json, to_json
from starlette.applications import Starlette
from starlette.requests import Request as StarletteRequest
from starlette.responses import Response as StarletteResponse
from starlette.routing import Route, Router

from fewshard_serve.errors import NotFound
from fewshard_serve.http.asgi import App
from fewshard_serve.http.body import read_body
from fewshard_serve.http.encoding import choose_coding
from fewshard_serve.http.middleware import AccessMiddleware
from fewshard_serve.http.request import Request
from fewshard_serve.http.responses import Response, json_response
from fewshard_serve.http.routing import MODEL
from fewshard_serve.http.routing import Route as OurRoute
from fewshard_serve.protocol.limits import Limits
from fewshard_serve.tracecontext import read_traceparent

BODY = b'{"inputs": ["a film that is funny and warm"]}'
PATH = "/v2/models/sst2/classify"
ECHO_US = (260.0, 400.0)
"""CPU of one echo request over HTTP, from docs/log.md."""

Asgi = Callable[[Any, Any, Any], Awaitable[None]]


class Counter:
    """Counts requests where a replica's metrics would, but in a single number."""

    def __init__(self) -> None:
        self.num_ok = 0

    def __call__(
        self, model: str, protocol: str, outcome: str, seconds: float, trace_id: str = "", /
    ) -> None:
        self.num_ok += outcome == "ok" and model == "sst2" and protocol == "classify"


class Ours(App[None]):
    """An application of one route."""

    def context(self, limits: Limits, routes: Any) -> Any:
        return None

    async def missing(self, _: Any, request: Request) -> Response:
        raise NotFound(f"there is no {request.path}")


async def _classify(_: None, request: Request) -> Response:
    """Answer with the number of inputs."""
    request.model_name = request.parameters["model"]
    return json_response({"num_inputs": len(from_json(await read_body(request, Limits()))["inputs"])})


ROUTE = OurRoute("POST", f"{MODEL}/classify", _classify, scope="predict", protocol="classify")


def starlette_route(count: Counter) -> Route:
    """Return the same with Starlette's route, request and response. The handler calls our checks."""
    doors, limits = AccessMiddleware(), Limits()

    async def classify(request: StarletteRequest) -> StarletteResponse:
        started_at, header = time.monotonic(), request.headers.get
        request_id = doors.identify(header("x-request-id"), read_traceparent(header("traceparent")))
        address = request.client.host if request.client else ""
        doors.admit(header("authorization"), header("x-request-priority"), address, "predict")
        if int(header("content-length", "0")) > limits.max_body_bytes:
            return StarletteResponse(status_code=413)
        async with asyncio.timeout(limits.max_body_s):
            body = await request.body()
        answer = to_json({"num_inputs": len(from_json(body)["inputs"])}, inf_nan_mode="null")
        count(request.path_params["model"], "classify", "ok", time.monotonic() - started_at)
        assert choose_coding(header("accept-encoding"), len(answer)) is None
        return StarletteResponse(answer, headers={"x-request-id": request_id}, media_type="application/json")

    return Route("/v2/models/{model}/classify", classify, methods=["POST"])


def scope() -> dict[str, Any]:
    """Return the scope that uvicorn makes of a load generator's request."""
    headers = {
        "host": "127.0.0.1:8000",
        "content-type": "application/json",
        "content-length": str(len(BODY)),
        "accept": "*/*",
        "connection": "keep-alive",
        "user-agent": "bench/1.0",
    }
    return {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": "POST",
        "scheme": "http",
        "path": PATH,
        "raw_path": PATH.encode(),
        "root_path": "",
        "query_string": b"",
        "headers": [(name.encode(), value.encode()) for name, value in headers.items()],
        "client": ("127.0.0.1", 50000),
        "server": ("127.0.0.1", 8000),
    }


async def round_us(app: Asgi, num_requests: int) -> float:
    """Return the CPU microseconds of a request."""
    sent: list[Any] = []

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": BODY, "more_body": False}

    async def send(message: Any) -> None:
        sent.append(message)

    began_s = time.process_time()
    for _ in range(num_requests):
        sent.clear()
        await app(scope(), receive, send)
    spent_s = time.process_time() - began_s
    start, body = sent
    assert start["status"] == 200
    assert json.loads(body["body"]) == {"num_inputs": 1}
    assert b"x-request-id" in dict(start["headers"])
    return 1e6 * spent_s / num_requests


async def measure(num_rounds: int, num_requests: int) -> dict[str, list[float]]:
    """Return times by application, alternating between them. The first round of each is a warm-up."""
    count = Counter()
    apps: dict[str, Asgi] = {
        "ours": Ours(None, on_request=count, routes=[ROUTE]),
        "starlette": Starlette(routes=[starlette_route(count)]),
        "router": Router(routes=[starlette_route(count)]),
    }
    found: dict[str, list[float]] = {name: [] for name in apps}
    for index in range(num_rounds + 1):
        for name, app in apps.items():
            spent = await round_us(app, num_requests)
            if index:
                found[name].append(spent)
    assert count.num_ok == len(apps) * (num_rounds + 1) * num_requests
    return found


def main() -> None:
    """Print medians, their ratio, and the difference as a share of an echo request."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=31)
    parser.add_argument("--requests", type=int, default=2000)
    args = parser.parse_args()
    found = asyncio.run(measure(args.rounds, args.requests))
    for name, spent in found.items():
        low, median, high = statistics.quantiles(spent, n=4)
        print(f"{name:10} {median:6.1f} us CPU a request (quartiles {low:.1f} to {high:.1f})")
    for name in ("starlette", "router"):
        pairs = list(zip(found["ours"], found[name], strict=True))
        more_us = statistics.median(theirs - ours for ours, theirs in pairs)
        ratio = statistics.median(theirs / ours for ours, theirs in pairs)
        low, high = (100 * more_us / echo_us for echo_us in reversed(ECHO_US))
        print(
            f"{name} / ours: {ratio:.2f}; {more_us:.1f} us more, {low:.1f} to {high:.1f} % of an echo request"
        )


if __name__ == "__main__":
    main()
