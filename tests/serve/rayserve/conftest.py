"""Hosts of fake models, in this process (`open_hosting`) or as a real server (`start_server`)."""

import contextlib
import importlib.util
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

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
        self._news, self._has_ended = threading.Condition(), False
        self._file = tempfile.NamedTemporaryFile("w", suffix=".json")  # noqa: SIM115  lives as long as this
        self.write(config)
        self.process = subprocess.Popen(
            [sys.executable, str(HERE / "serve_fakes.py"), self._file.name],
            env={
                **os.environ,
                "PYTHONPATH": os.pathsep.join([str(HERE), os.environ.get("PYTHONPATH", "")]),
                "HOME": "/proc",  # not even root can write there, as in a container of another user
            },
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
        """Until the server has said so; fails where it ends before."""
        with self._news:
            self._news.wait_for(lambda: words in self.output or self._has_ended, timeout_s)
        assert words in self.output, f"the server has not said {words!r}:\n{self.output}"

    def replicas(self, model):
        """Ids of the processes of a model that has its own."""
        title = f"ServeReplica:model-{model}:".encode()
        return [pid for pid in self.processes() if title in Path(f"/proc/{pid}/cmdline").read_bytes()]

    def _read(self):
        for line in self.process.stdout:
            with self._news:
                self.lines.append(line)
                self._news.notify_all()
        with self._news:
            self._has_ended = True
            self._news.notify_all()

    def wait_until_ready(self):
        """Until it says READY, and answers that it is."""
        self.wait_for("READY")
        assert httpx.get(f"{self.url}/v2/health/ready", timeout=20).status_code == 200, self.output
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

    def metric(self, name, **labels):
        """The sum over all samples of a name that carry these labels."""
        wanted = [f'{key}="{value}"' for key, value in labels.items()]
        lines = httpx.get(f"{self.url}/metrics", timeout=10).text.splitlines()
        found = [one for one in lines if one.startswith(name + "{") and all(each in one for each in wanted)]
        return sum(float(line.rpartition(" ")[2]) for line in found)

    def is_draining(self, *models):
        """Whether the gateway and the hosts of these models refuse what is new."""
        paths = ["/v2/health/ready", *(f"/v2/models/{model}/ready" for model in models)]
        return all(httpx.get(self.url + path, timeout=10).status_code == 503 for path in paths)

    def scrape(self):
        """A scrape's text, None where nobody answers; what is answered must be whole, and within 5 s.

        That is for a machine whose cores are enough: where 11 processes wanted 2 it took 9.7 s while the
        server started. So the bound grows as the load of a core does.
        """
        started_at = time.monotonic()
        try:
            answer = httpx.get(f"{self.url}/metrics", timeout=60)
        except httpx.TransportError:
            return None
        if answer.status_code != 200:
            assert answer.status_code in (404, 500, 503), answer.text
            return None
        list(text_string_to_metric_families(answer.text))
        load = os.getloadavg()[0] / len(os.sched_getaffinity(0))
        assert time.monotonic() - started_at < 5 * max(1.0, load)
        return answer.text

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

    def work_dirs(self):
        """The folders that its processes name."""
        return {path for pid in self.processes() for path in work_dirs(pid)}

    def close(self):
        """End whatever is left, by id, and at once: how a server stops by itself is for tests to see."""
        folders = self.work_dirs()
        while left := self.processes():
            for pid in left:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
        self.process.wait()
        for folder in folders:
            shutil.rmtree(folder, ignore_errors=True)


def work_dirs(pid):
    """The folders of a server that its HAProxy names."""
    try:
        command = Path(f"/proc/{pid}/cmdline").read_text(errors="replace")
    except OSError:
        return set()
    return set(re.findall(r"/tmp/fewshard-[^/\0]+", command)) if "haproxy" in command else set()


class Call(threading.Thread):
    """A request in a thread; `response` is there after `join`."""

    def __init__(self, call, *args, **kwargs):
        super().__init__(daemon=True)
        self.work = lambda: call(*args, **kwargs)
        self.response = self.error = None
        self.start()

    def run(self):
        try:
            self.response = self.work()
        except httpx.HTTPError as error:
            self.error = error


def wait_until(condition, timeout_s=60):
    give_up_at = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < give_up_at, "not in time"
        time.sleep(0.02)


@pytest.fixture
def until():
    """Waits for a condition; tests cannot import a conftest."""
    return wait_until


class Gate:
    """Requests that models hold inside until it is opened, at the latest when the test ends."""

    def __init__(self, folder):
        self._folder, self.calls = folder, []

    def hold(self, server, model, **more):
        """Returns once the model's pass has begun. Be quick: a pass of 5 s may count as one that hangs."""
        file = self._ask(server, model, more)
        wait_until(Path(f"{file}.held").exists)
        return self.calls[-1]

    def queue(self, server, model, **more):
        """For a model whose runner is held: returns once the request waits there."""
        self._ask(server, model, more)
        wait_until(lambda: server.metric("fewshard_inflight_items", model=model) == 1)

    def open(self):
        for number in range(len(self.calls)):
            (self._folder / str(number)).touch()

    def _ask(self, server, model, more):
        file = self._folder / str(len(self.calls))
        self.calls.append(Call(server.classify, model, f"hold {file}", timeout_s=90, **more))
        return file


@pytest.fixture
def gate(tmp_path):
    one = Gate(tmp_path)
    yield one
    one.open()


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
