"""What metrics cost: CPU time of a request through a replica's application, metrics on and off by turns.

`python benchmarks/metrics_overhead.py` loads a bundled model as a replica does and sends it the same requests
over ASGI, without a network, round by round, metrics on and off in random order. It prints the CPU time of a
request with metrics off, the model's process included; the difference in the replica's own process with its
95 % confidence interval (Student's t over the pairs of rounds); the share, and the calls that count by
themselves. Scrapes are added as one every 15 seconds at `--rate` requests a second. Run it on a machine that
does nothing else.
"""

import argparse
import asyncio
import json
import math
import random
import statistics
import time
from dataclasses import dataclass
from typing import Any

import numpy as np

from fewshard_serve.core import BatchStats, Timings
from fewshard_serve.engine.settings import EngineSettings
from fewshard_serve.http.host import HostApp
from fewshard_serve.metrics import MetricsSettings
from fewshard_serve.rayserve.broadcast import MergedService
from fewshard_serve.rayserve.deployment_plan import HostSpec, ModelSpec
from fewshard_serve.rayserve.replica import Replica

SCRAPE_S = 15.0
T_95 = {20: 2.093, 30: 2.045, 40: 2.023, 60: 2.001, 100: 1.984}
"""Student's t, two-sided, by the number of pairs."""


@dataclass
class ServedReplica:
    replica: Replica
    app: HostApp


async def open_replica(model: str) -> ServedReplica:
    spec = HostSpec(
        "models",
        "/v2/models",
        (ModelSpec(model, f"zoo:{model}", "cpu", "auto", EngineSettings()),),
    )
    replica = await Replica.open(spec)

    async def alone(method: str, *args: Any) -> list[Any]:
        return []

    service = MergedService(replica, {"replica": "r"}, alone)
    return ServedReplica(replica, HostApp(service, on_request=replica.metrics.observe_request))


async def request(app: HostApp, method: str, path: str, body: bytes = b"") -> int:
    """Send one request over ASGI. Return its status."""
    scope = {"type": "http", "method": method, "path": path, "headers": [], "query_string": b""}
    messages = [{"type": "http.request", "body": body, "more_body": False}]
    statuses: list[int] = []

    async def receive() -> dict[str, Any]:
        if messages:
            return messages.pop()
        await asyncio.Event().wait()
        raise AssertionError

    async def send(message: dict[str, Any]) -> None:
        if "status" in message:
            statuses.append(message["status"])

    await app(scope, receive, send)
    return statuses[0]


def cpu_of_model(served: ServedReplica) -> float:
    """Return the CPU seconds of the model process up to now."""
    process = served.replica._process
    assert process is not None
    return time.clock_gettime((~process.pid << 3) | 2)  # Linux's MAKE_PROCESS_CPUCLOCK


async def cpu_of_round(served: ServedReplica, model: str, body: bytes, options: argparse.Namespace) -> float:
    """Return the CPU seconds of one request, over all threads of this process."""
    started = time.process_time()
    for _ in range(options.requests):
        status = await request(served.app, "POST", f"/v2/models/{model}/classify", body)
        assert status == 200, status
    return (time.process_time() - started) / options.requests


async def cpu_of_scrape(served: ServedReplica, model: str) -> float:
    started = time.process_time()
    for _ in range(20):
        assert await request(served.app, "GET", f"/v2/models/{model}/metrics") == 200
    return (time.process_time() - started) / 20


def cpu_of_counting(served: ServedReplica, model: str) -> float:
    """Return the CPU seconds of everything that one request counts, in isolation."""
    metrics, logits = served.replica.metrics, np.zeros((1, 2), np.float32)
    stats = BatchStats(model, 1, 20, 0, 0.001, (0.001,))
    started = time.process_time()
    for _ in range(10_000):
        metrics.observe_request(model, "classify", "ok", 0.01)
        metrics.observe_timings(model, Timings(0.001, 0.001, 0.001))
        metrics.observe_batch(stats)
        metrics.observe_predictions(model, logits)
    return (time.process_time() - started) / 10_000


async def measure(options: argparse.Namespace) -> dict[str, Any]:
    body = json.dumps({"inputs": options.text}).encode()
    served = await open_replica(options.model)
    await cpu_of_round(served, options.model, body, options)
    seconds: dict[bool, list[float]] = {True: [], False: []}
    model_began_s = cpu_of_model(served)
    for _ in range(options.rounds):
        for is_on in random.sample((True, False), 2):
            # One model for both: copies would differ by the memory location of their weights.
            served.replica.metrics._settings = MetricsSettings(enabled=is_on)
            seconds[is_on].append(await cpu_of_round(served, options.model, body, options))
    num_requests = 2 * options.rounds * options.requests
    model_s = (cpu_of_model(served) - model_began_s) / num_requests
    served.replica.metrics._settings = MetricsSettings()
    scrape_s = await cpu_of_scrape(served, options.model)
    counting_s = cpu_of_counting(served, options.model)
    await served.replica.finish_drain(5.0)
    found = summary(seconds[True], seconds[False], scrape_s / (SCRAPE_S * options.rate), model_s)
    return {**found, "counting_alone_us": 1e6 * counting_s}


def summary(on: list[float], off: list[float], scrapes_s: float, model_s: float) -> dict[str, Any]:
    """Return microseconds of a request.

    scrapes_s: the share of scrapes in one request.
    model_s: time of the model process.
    """
    differences = [first - second + scrapes_s for first, second in zip(on, off, strict=True)]
    mean, base = statistics.mean(differences), statistics.mean(off) + model_s
    half = t_95(len(on)) * statistics.stdev(differences) / math.sqrt(len(on))
    return {
        "rounds": len(on),
        "off_us": 1e6 * base,
        "model_us": 1e6 * model_s,
        "difference_us": 1e6 * mean,
        "difference_low_us": 1e6 * (mean - half),
        "difference_high_us": 1e6 * (mean + half),
        "share": mean / base,
        "share_low": (mean - half) / base,
        "share_high": (mean + half) / base,
        "scrapes_us": 1e6 * scrapes_s,
    }


def t_95(num_pairs: int) -> float:
    """Return the value for this many pairs, or for the next fewer in the table, which is wider."""
    return T_95[max(each for each in T_95 if each <= num_pairs)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="sst2-moe")
    parser.add_argument("--text", default="a gripping and often funny film")
    parser.add_argument("--rounds", type=int, default=100, help="pairs, at least 20")
    parser.add_argument("--requests", type=int, default=50, help="in each round")
    parser.add_argument("--rate", type=float, default=50.0, help="requests a second, to spread scrapes over")
    options = parser.parse_args()
    if options.rounds < min(T_95):
        parser.error(f"--rounds must be {min(T_95)} or more")
    found = asyncio.run(measure(options))
    print(json.dumps(found, indent=1))
    print(
        f"{found['off_us']:.0f} us a request without metrics; metrics add {found['difference_us']:.1f} us "
        f"({found['difference_low_us']:.1f} to {found['difference_high_us']:.1f}): {found['share']:.2%} "
        f"({found['share_low']:.2%} to {found['share_high']:.2%})"
    )


if __name__ == "__main__":
    main()
