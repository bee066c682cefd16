"""A real server whose bundled MoE model is spread over three shards: a dead one costs no answer.

The tests run in order on one server; the last one stops it.
"""

import os
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import numpy as np
import pytest

from fewshard_core.values import TextInput
from fewshard_serve.backends.load import load_model
from fewshard_serve.rayserve.environment import free_ports

pytestmark = pytest.mark.server

START_TIMEOUT_S = 200
SHARDS = 3
TEXTS = [
    "a gripping and often funny film",
    "dull",
    "the plot is slow, the actors are not",
    "two hours i want back , and then some more of the same",
    "warm",
    "not bad at all for what it is and what it wants to be",
] * 4


class Server:
    def __init__(self, folder, experts):
        port, grpc_port = free_ports(2)
        self.url = f"http://127.0.0.1:{port}"
        self.session = httpx.Client(timeout=30)
        config = folder / "fewshard.yaml"
        config.write_text(
            f"models:\n  - {{name: sharded, path: 'zoo:sst2-moe', dtype: fp32, experts: {experts}}}\n"
            f"server: {{port: {port}, grpc_port: {grpc_port}}}\n"
        )
        self.log = folder / "serve.log"
        with self.log.open("wb") as output:
            self.process = subprocess.Popen(
                [str(Path(sys.executable).with_name("fewshard")), "serve", str(config)],
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def wait_until_ready(self):
        give_up_at = time.monotonic() + START_TIMEOUT_S
        while time.monotonic() < give_up_at:
            assert self.process.poll() is None, f"the server ended:\n{self.log.read_text()}"
            try:
                paths = ["/v2/health/ready", "/v2/models/sharded/ready"]  # the gateway's, and the model's own
                if all(httpx.get(self.url + path).status_code == 200 for path in paths):
                    return self
            except httpx.TransportError:
                pass
            time.sleep(0.1)
        raise AssertionError(f"not ready:\n{self.log.read_text()}")

    def scores(self, texts):
        """Logits by label, [N, 2]."""
        body = {"inputs": texts, "raw_scores": True}
        response = self.session.post(f"{self.url}/v2/models/sharded/classify", json=body)
        assert response.status_code == 200, response.text
        assert "degraded" not in response.json()
        by_label = [{each["label"]: each["score"] for each in one} for one in response.json()["predictions"]]
        return np.array([[one["negative"], one["positive"]] for one in by_label])

    def experts(self):
        return httpx.get(f"{self.url}/v2/models/sharded/experts", timeout=10).json()

    def metric(self, name):
        lines = httpx.get(f"{self.url}/metrics", timeout=10).text.splitlines()
        return sum(float(line.rpartition(" ")[2]) for line in lines if line.startswith(name + "{"))

    def place(self, **body):
        return httpx.post(f"{self.url}/v2/models/sharded/placement", json=body, timeout=90)

    def workers(self):
        """The processes of the shards that are no leaders."""
        return [pid for pid, name in self.processes().items() if name.startswith("ray::ShardWorker")]

    def processes(self):
        """Every process of the server's session: id and command."""
        found = {}
        for entry in Path("/proc").glob("[0-9]*"):
            try:
                stat = (entry / "stat").read_text().rpartition(")")[2].split()
                name = (entry / "cmdline").read_bytes().decode(errors="replace")
            except OSError:
                continue
            if int(stat[3]) == self.process.pid and stat[0] != "Z":
                found[int(entry.name)] = name
        return found

    def close(self):
        self.session.close()
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            try:
                self.process.wait(60)
            except subprocess.TimeoutExpired:
                self.process.kill()
        for pid in self.processes():
            os.kill(pid, signal.SIGKILL)


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    running = Server(tmp_path_factory.mktemp("sharded"), "{shards: 3, slots_per_shard: 2}")
    yield running.wait_until_ready()
    running.close()


@pytest.fixture(scope="module")
def expected():
    model = load_model("whole", "zoo:sst2-moe", "cpu", "fp32")
    return model.run(model.prepare([TextInput(text) for text in TEXTS])).logits


class Load:
    """Requests at a steady rate, while there are fewer than 30 under way, until the block ends. `outcomes`:
    how each ended."""

    def __init__(self, server, expected, rate):
        self._server, self._expected, self._rate = server, expected, rate
        self._stopped = threading.Event()
        self._sender = threading.Thread(target=self._send_all)
        self.outcomes, self.num_answered = [], 0

    def __enter__(self):
        self._sender.start()
        return self

    def __exit__(self, *_):
        self._stopped.set()
        self._sender.join()

    def _send_all(self):
        with ThreadPoolExecutor(30) as pool:
            sent = []
            while not self._stopped.wait(1 / self._rate):
                self.num_answered = sum(one.done() for one in sent)
                if len(sent) - self.num_answered < 30:
                    sent.append(pool.submit(self._one, len(sent) % len(TEXTS)))
        self.outcomes = [one.result() for one in sent]

    def _one(self, text):
        try:
            scores = self._server.scores([TEXTS[text]])
        except (AssertionError, httpx.HTTPError) as error:
            return repr(error)
        return "ok" if np.abs(scores[0] - self._expected[text]).max() < 1e-4 else "wrong"


def wait_until(condition, timeout_s=90):
    give_up_at = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < give_up_at, "not in time"
        time.sleep(0.05)


def test_a_sharded_model_answers_as_the_whole_one(server, expected):
    assert np.abs(server.scores(TEXTS) - expected).max() < 1e-4
    assert np.abs(server.scores(TEXTS[:1]) - expected[:1]).max() < 1e-4
    assert len(server.workers()) == SHARDS - 1


def test_experts_and_metrics_tell_of_the_shards(server):
    found = server.experts()
    assert (found["group"]["shards"], found["group"]["size"]) == (SHARDS, SHARDS)
    for layer in found["layers"]:
        assert sorted({expert for shard in layer["placement"] for expert in shard}) == [0, 1, 2, 3]
        assert sum(layer["shard_tokens_total"]) == sum(layer["tokens_total"]) == layer["rows"]
    assert server.metric("fewshard_group_size") == SHARDS
    assert server.metric("fewshard_shard_tokens_total") == server.metric("fewshard_expert_tokens_total")


def rotated(server):
    """The present placement with every shard's experts on the next one, as a placement file has it."""
    layers = [layer["placement"] for layer in server.experts()["layers"]]
    slots = [[[*shard, -1, -1][:2] for shard in [*layer[-1:], *layer[:-1]]] for layer in layers]
    moves = sum(
        len(set(now) - set(then) - {-1})
        for new, old in zip(slots, layers, strict=True)
        for now, then in zip(new, old, strict=True)
    )
    return {"model": "sharded", "num_experts": 4, "slots": slots}, moves


def test_a_placement_is_planned_first_and_then_applied(server, expected):
    wanted, moves = rotated(server)
    before = server.experts()["layers"]
    planned = server.place(**wanted).json()
    assert moves > 0
    assert (planned["moves"], planned["applied"], planned["replicas"]) == (moves, False, 1)
    assert planned["bytes"] > 1000 * moves
    with Load(server, expected, 20) as load:
        wait_until(lambda: load.num_answered)
        assert server.place(**wanted, apply=True).json() == {**planned, "applied": True}
    assert set(load.outcomes) == {"ok"}
    after = server.experts()["layers"]
    for then, now in zip(before, after, strict=True):
        assert now["placement"] == [*then["placement"][-1:], *then["placement"][:-1]]
    assert server.metric("fewshard_placement_moves_total") == moves
    again = server.place(**wanted).json()
    assert (again["moves"], again["bytes"]) == (0, 0)


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ({"placement": "best"}, "no placement 'best'"),
        ({"plan": "x"}, "unknown key 'plan'"),
        ({"model": "other", "num_experts": 4, "slots": [[[0, 1, 2, 3]]]}, "for 'other', not for 'sharded'"),
        ({"model": "sharded", "num_experts": 4, "slots": [[[0, 1, 2, 3]]]}, "for 1 layers, this group has 3"),
    ],
)
def test_a_placement_that_does_not_fit_is_refused(server, body, message):
    response = server.place(**body)
    assert (response.status_code, response.json()["code"]) == (400, "malformed")
    assert message in response.json()["error"]


def test_a_killed_shard_costs_no_answer_and_comes_back(server, expected):
    with Load(server, expected, 25) as load:
        wait_until(lambda: load.num_answered > 20)
        os.kill(server.workers()[0], signal.SIGKILL)
        wait_until(lambda: server.metric("fewshard_group_reforms_total") >= 1)
        wait_until(lambda: server.metric("fewshard_group_size") == SHARDS)
    assert set(load.outcomes) == {"ok"}
    assert len(load.outcomes) > 20
    assert len(server.workers()) == SHARDS - 1


def test_a_stopped_shard_is_replaced(server, expected):
    os.kill(server.workers()[-1], signal.SIGSTOP)
    started_at = time.monotonic()
    assert np.abs(server.scores(TEXTS) - expected).max() < 1e-4
    assert time.monotonic() - started_at < 10
    reforms = server.metric("fewshard_group_reforms_total")
    wait_until(lambda: server.metric("fewshard_group_reforms_total") > reforms or reforms >= 4)
    wait_until(lambda: server.metric("fewshard_group_size") == SHARDS)


def test_sigterm_ends_every_process(server):
    server.process.send_signal(signal.SIGTERM)
    assert server.process.wait(60) == 0, server.log.read_text()
    wait_until(lambda: not server.processes(), 20)
