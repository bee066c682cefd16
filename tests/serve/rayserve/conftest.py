"""Hosts of fake models, in this process (`open_hosting`) or as a real server (`start_server`)."""

import importlib.util
import json
import os
import queue
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import httpx
import pytest

from fewshard_serve.engine.settings import EngineSettings
from fewshard_serve.rayserve.deployment_plan import HostSpec, ModelSpec
from fewshard_serve.rayserve.environment import free_ports

HERE = Path(__file__).parent
START_TIMEOUT_S = 200  # on a machine that does much else


@pytest.fixture(scope="session", autouse=True)
def fake_models():
    """The module `fake_models`, under the name by which the loader's path finds it."""
    spec = importlib.util.spec_from_file_location("fake_models", HERE / "fake_models.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules["fake_models"] = module
    spec.loader.exec_module(module)
    sys.path.append(str(HERE))  # for the processes that hold models
    yield module
    sys.path.remove(str(HERE))


@pytest.fixture(scope="session")
def front_type(fake_models):
    """`Front` of `haproxy_front`, imported once `HERE` is on the path."""
    return importlib.import_module("haproxy_front").Front


@pytest.fixture
def host_spec():
    def make(paths, **more):
        models = tuple(
            ModelSpec(name, path, "auto", "auto", EngineSettings()) for name, path in paths.items()
        )
        return HostSpec("models", "/v2/models", models, loader="fake_models:load_model", **more)

    return make


class Server:
    """`fewshard serve` over fake models in a process of its own, in a session of its own."""

    def __init__(self, config):
        self.config = config
        self.lines = []
        self._seen = queue.SimpleQueue()
        self._file = tempfile.NamedTemporaryFile("w", suffix=".json")  # noqa: SIM115  lives as long as this
        self.write(config)
        self.process = subprocess.Popen(
            [sys.executable, str(HERE / "serve_fakes.py"), self._file.name],
            env={**os.environ, "PYTHONPATH": os.pathsep.join([str(HERE), os.environ.get("PYTHONPATH", "")])},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        threading.Thread(target=self._read, daemon=True).start()

    @property
    def url(self):
        return f"http://127.0.0.1:{self.config['server']['port']}"

    @property
    def output(self):
        return "".join(self.lines)

    def write(self, config):
        """What the server reads at its start, and again on SIGHUP."""
        self.config = config
        self._file.seek(0)
        self._file.truncate()
        json.dump(config, self._file)
        self._file.flush()

    def wait_for(self, words, timeout_s=START_TIMEOUT_S):
        give_up_at = time.monotonic() + timeout_s
        while words not in self.output:
            assert time.monotonic() < give_up_at, f"the server has not said {words!r}:\n{self.output}"
            time.sleep(0.1)

    def replicas(self, model):
        """Ids of the processes of a model that has its own."""
        title = f"ServeReplica:model-{model}:".encode()
        return [pid for pid in self.processes() if title in Path(f"/proc/{pid}/cmdline").read_bytes()]

    def _read(self):
        for line in self.process.stdout:
            self.lines.append(line)
            self._seen.put(line)

    def wait_until_ready(self):
        give_up_at = time.monotonic() + START_TIMEOUT_S
        while "READY\n" not in self.lines:
            assert self.process.poll() is None, f"the server ended:\n{self.output}"
            assert time.monotonic() < give_up_at, f"the server is not ready:\n{self.output}"
            time.sleep(0.05)
        return self

    def signal(self, number):
        self.process.send_signal(number)

    def wait(self, timeout_s=START_TIMEOUT_S):
        """The exit code, once the process has ended."""
        return self.process.wait(timeout_s)

    def classify(self, model, inputs, *, path=None, timeout_s=20):
        if path is None:
            return httpx.post(
                f"{self.url}/v2/models/{model}/classify", json={"inputs": inputs}, timeout=timeout_s
            )
        return httpx.post(f"{self.url}{path}", json={"model": model, "inputs": inputs}, timeout=timeout_s)

    def processes(self):
        """Every process of the server's session, by id."""
        found = []
        for entry in Path("/proc").iterdir():
            try:
                stat = (entry / "stat").read_text().rpartition(")")[2].split()
            except (OSError, NotADirectoryError):
                continue
            state, session = stat[0], int(stat[3])
            if session == self.process.pid and state != "Z":
                found.append(int(entry.name))
        return found

    def close(self):
        """End whatever is left, by id."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            try:
                self.process.wait(30)
            except subprocess.TimeoutExpired:
                self.process.kill()
        for pid in self.processes():
            os.kill(pid, signal.SIGKILL)


@pytest.fixture(scope="module")
def start_server():
    servers = []

    def start(models, port=None, **more):
        free, grpc = free_ports(2)
        ports = {"port": port or free, "grpc_port": grpc}
        servers.append(Server({"models": models, "server": ports, **more}))
        return servers[-1]

    yield start
    for server in servers:
        server.close()
