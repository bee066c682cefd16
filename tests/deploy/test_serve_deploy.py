"""What the chart renders, on a real Ray by Ray's own `serve deploy`: a prediction, then a change in place.

The change is made while clients ask one request after another; none of them may fail.
"""

import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import httpx
import pytest
import yaml

from chart_render import Renderer, serve_config_of
from fewshard_serve.rayserve.environment import LOOPBACK_ONLY, TOKEN_FILE, free_ports

HERE = Path(__file__).parent
START_TIMEOUT_S = 240
SERVE = "from ray.serve.scripts import cli; cli()"
TEXT = "a gripping and often funny film"

pytestmark = [pytest.mark.server, pytest.mark.slow, pytest.mark.timeout(900)]


class Head:
    """Ray in a process and session of its own."""

    def __init__(self, work_dir):
        self.work_dir = work_dir
        self.dashboard_port, self.port = free_ports(2)
        self.url = f"http://127.0.0.1:{self.port}"
        self.process = subprocess.Popen(
            [sys.executable, str(HERE / "ray_head.py"), work_dir, str(self.dashboard_port)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            start_new_session=True,
        )
        line = self.process.stdout.readline()
        assert line == "READY\n", line

    def deploy(self, config, folder):
        """Hand a Serve configuration over, as a user does, on a port of our own.

        The root path says that a proxy takes a prefix off; every path must be found all the same.
        """
        path = Path(folder, "serve.yaml")
        options = {"host": "127.0.0.1", "port": self.port, "root_path": "/below/a/prefix"}
        config = {**config, "http_options": options}
        path.write_text(yaml.safe_dump(config))
        done = subprocess.run(
            [sys.executable, "-c", SERVE, "deploy", str(path)],
            env={
                **os.environ,
                **LOOPBACK_ONLY,
                TOKEN_FILE: str(Path(self.work_dir, "auth_token")),
                "RAY_DASHBOARD_ADDRESS": self.dashboard,
            },
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr

    @property
    def dashboard(self):
        return f"http://127.0.0.1:{self.dashboard_port}"

    def wait_for(self, is_true):
        give_up_at = time.monotonic() + START_TIMEOUT_S
        while not _asked(is_true):
            assert time.monotonic() < give_up_at
            assert self.process.poll() is None
            time.sleep(0.25)

    def classify(self, model, inputs, path=None):
        if path is None:
            return httpx.post(f"{self.url}/v2/models/{model}/classify", json={"inputs": inputs}, timeout=30)
        return httpx.post(f"{self.url}{path}", json={"model": model, "inputs": inputs}, timeout=30)

    def close(self):
        self.process.stdin.close()
        try:
            self.process.wait(60)
        except subprocess.TimeoutExpired:
            os.killpg(self.process.pid, signal.SIGKILL)


def _asked(is_true):
    try:
        return is_true()
    except httpx.HTTPError:
        return False


class Asking(threading.Thread):
    """One request after another until `stop`; `statuses` of all of them."""

    def __init__(self, call):
        super().__init__(daemon=True)
        self.call, self.statuses, self.stopped = call, [], threading.Event()
        self.start()

    def run(self):
        while not self.stopped.wait(0.02):
            try:
                self.statuses.append(self.call().status_code)
            except httpx.HTTPError as error:
                self.statuses.append(repr(error))

    def stop(self):
        self.stopped.set()
        self.join(60)
        return self.statuses


@pytest.fixture(scope="module")
def head():
    with tempfile.TemporaryDirectory(prefix="fewshard-", dir="/tmp", ignore_cleanup_errors=True) as folder:
        head = Head(folder)
        yield head
        head.close()


@pytest.fixture
def config():
    """From values of the chart to the Serve configuration in its RayService."""
    chart = Renderer()
    return lambda values: serve_config_of(chart.render(values))


def test_a_prediction_then_a_change_without_a_failed_request(head, config, tmp_path):
    head.deploy(config({}), tmp_path)
    head.wait_for(lambda: httpx.get(f"{head.url}/v2/health/ready", timeout=5).status_code == 200)
    for path in (None, "/classify"):
        answer = head.classify("sst2-dense", TEXT, path)
        assert answer.status_code == 200, answer.text
        assert answer.json()["predictions"][0][0]["label"] == "positive"

    clients = [Asking(lambda: head.classify("sst2-dense", TEXT)) for _ in range(2)]
    clients.append(Asking(lambda: head.classify("sst2-moe", TEXT, "/classify")))
    time.sleep(1)
    head.deploy(config({"limits": {"max_items": 3}}), tmp_path)
    ways = (None, "/classify")
    head.wait_for(lambda: {head.classify("sst2-dense", [TEXT] * 4, way).status_code for way in ways} == {413})
    time.sleep(10)  # while those that were replaced go
    statuses = [status for client in clients for status in client.stop()]
    assert len(statuses) > 50
    assert set(statuses) == {200}
