"""How the server's chaos names, counts, sends and keeps; and that it ends what it started."""

import asyncio
import importlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import psutil
import pytest

from fewshard_serve.protocol.json_guard import MAX_VALUES
from fewshard_serve.rayserve.environment import free_ports
from fewshard_serve.rpc.messages import CLASSES

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture(scope="module")
def load():
    """Imports a module of the folder by name."""
    sys.path.insert(0, str(BENCHMARKS))
    yield importlib.import_module
    sys.path.remove(str(BENCHMARKS))


@pytest.mark.parametrize(
    ("command", "parent", "expected"),
    [
        (["/ray/gcs/gcs_server", "--log_dir=/tmp"], [], "GCS"),
        (["/ray/raylet/raylet", "--agent_command=cat"], [], "raylet"),
        (["ray::ServeController.listen_for_change"], [], "controller"),
        (["ray::ServeReplica:gateway:gateway"], [], "gateway"),
        (["ray::ServeReplica:model-twice:host"], [], "replica of twice"),
        (["ray::ServeReplica:models:host"], [], "replica of models"),
        (["ray::ShardWorker"], [], "shard"),
        (["/bin/haproxy", "-dS", "-db", "-f", "/tmp/fewshard-a/b"], ["ray::HAProxyManager"], "HAProxy"),
        (["/bin/sh", "/tmp/fewshard-a/haproxy", "-db", "-f", "/tmp/b"], [], "HAProxy's wrapper"),
        (
            ["python", "-c", "from fewshard_serve.backends.child_process import main; main()", "9"],
            ["ray::ServeReplica:model-twice:host"],
            "models' process of twice",
        ),
        (
            ["python", "-c", "from fewshard_serve.backends.early_process", "/tmp/fewshard-a/models.models"],
            ["python", "fewshard", "serve"],
            "models' process of models",
        ),
        (["python", "-IS", "/a/haproxy_keeper.py", "-f", "b"], ["ray::HAProxyManager"], "HAProxy's front"),
        (["python", "/a/haproxy_keeper.py"], ["python", "/a/haproxy_keeper.py"], "HAProxy's keeper"),
        (["python", "-S", "/a/run_folder.py", "/tmp/fewshard-a"], ["fewshard"], "reaper"),
        (["cat"], ["raylet"], "agent"),
        (["python", "/ray/_private/log_monitor.py"], [], "agent"),
        (["sleep", "9"], [], "other: sleep"),
        ([], [], "other: "),
    ],
)
def test_every_process_of_a_server_has_a_name(load, command, parent, expected):
    assert load("chaos_server").role(command, parent) == expected


def test_probes_are_counted_by_what_became_of_them(load):
    probes = load("chaos_probes")
    outcomes = [(200, 0.1), (200, 11.5), (503, 0.1), (429, 0.1), (500, 0.1), ("ReadError", 0.2), (408, 10.1)]
    sent = [probes.Probe("a", 0.0, seconds, outcome) for outcome, seconds in outcomes]
    sent += [probes.Probe("b", 0.0, 0.1, "ReadError")]
    seen = probes.Seen.of(sent, rate=10.0)
    assert (seen.sent, seen.failed, seen.lost, seen.late) == (8, 6, 3, 1)
    assert (seen.failed_s, seen.slowest_s) == (0.5, 11.5)
    assert seen.outcomes == {"503": 1, "429": 1, "500": 1, "ReadError": 2, "408": 1}


def test_the_label_is_found_in_each_form_of_an_answer(load):
    best = load("chaos_probes").best
    assert best({"predictions": [[{"label": "positive", "score": 0.9}]]}) == "positive"
    assert best([{"label": "negative", "score": 0.9}]) == "negative"
    assert best([[{"label": "negative", "score": 0.9}]]) == "negative"


def table(load, folder, form, resume, chosen=("one", "two")):
    module = load("chaos_table")
    parts = {name: module.Part(f"part {name}", "at most 1", ("x",)) for name in ("one", "two")}
    return module.Table(folder, parts, form, list(chosen), resume)


def test_a_run_goes_on_after_its_last_row(load, tmp_path):
    first = table(load, tmp_path, {"n": 1}, resume=False)
    first.add("one", "a", {"x": 0.5}, True)
    first.add("one", "a", {"x": 2.0}, False, "again")
    assert table(load, tmp_path, {"n": 1}, resume=True).has("one", "a")
    assert not table(load, tmp_path, {"n": 2}, resume=True).has("one", "a")
    assert not table(load, tmp_path, {"n": 1}, resume=False).has("one", "a")
    kept = table(load, tmp_path, {"n": 1}, resume=False, chosen=["two"])
    assert [(row.what, row.figures) for row in kept.rows] == [("a", {"x": 2.0})]


def test_the_table_says_what_was_met_missed_and_not_run(load, tmp_path):
    found = table(load, tmp_path, {}, resume=False)
    found.add("one", "a", {"x": 0.5}, True)
    found.add("one", "b", {"x": 2.0}, False, "slow")
    found.add("one", "c", {}, None, "not here")
    text = (tmp_path / "chaos.md").read_text()
    assert "| one | at most 1 | 1 of 2 |" in text
    assert "| a | 0.5 | met |  |" in text
    assert "| b | 2 | missed | slow |" in text
    assert "| c | - | not run | not here |" in text
    assert len(json.loads((tmp_path / "chaos.json").read_text())["rows"]) == 3


@pytest.fixture
def server():
    """A server that refuses every second request; `seen` counts callers and paths."""
    seen = Counter()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self):
            self.rfile.read(int(self.headers["Content-Length"]))
            seen[self.client_address[0], self.path, self.headers["X-Request-Timeout-Ms"]] += 1
            self.send_response(200 if seen.total() % 2 else 429)
            self.send_header("Retry-After", "0.01")
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_):
            pass

    serving = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    serving.seen = seen
    thread = threading.Thread(target=serving.serve_forever)
    thread.start()
    yield serving
    serving.shutdown()
    thread.join()
    serving.server_close()


def test_an_attack_comes_from_its_own_address_and_ends(load, server, capsys):
    attacks = load("chaos_attacks")
    attack = attacks.Attack(server.server_port, 0, 0.3)
    asyncio.run(attack.requests(4, attacks.CLASSIFY, [(b"{}", False)]))
    assert set(server.seen) == {("127.0.0.2", "/v2/models/alone/classify", "1000")}
    assert server.seen.total() == attack.answers.total() >= 4
    assert min(attack.answers["200"], attack.answers["429"]) > 0
    assert capsys.readouterr().out == "begun\n"


def test_requests_at_their_limits_are_as_large_as_they_say(load, monkeypatch):
    attacks = load("chaos_attacks")
    assert len(attacks.png()) < 5000
    assert attacks.NUM_VALUES < MAX_VALUES
    monkeypatch.setattr(attacks, "NUM_VALUES", 300)
    (tensor,) = json.loads(attacks.numbers_body())["inputs"]
    assert tensor["shape"] == [300] == [len(tensor["data"])]
    assert len(attacks.numbers_body()) == attacks.UNPACKED_BYTES < 32 * 2**20
    monkeypatch.setattr(attacks, "NUM_NUMBERS", 3000)
    request = CLASSES["ModelInferRequest"].FromString(attacks.numbers_message())
    assert request.model_name == "alone"
    assert list(request.inputs[0].contents.uint_contents) == [1] * 3000 == [1] * request.inputs[0].shape[0]


def test_silent_bodies_go_to_every_path_that_predicts(load):
    paths = list(load("chaos_attacks").predicting_paths())
    model = "/v2/models/alone"
    wanted = {f"{model}/classify", f"{model}/infer", f"{model}/explain", f"{model}/predict", "/predict"}
    assert wanted | {f"{model}/classify/"} <= set(paths)
    assert not [path for path in paths if "{" in path]


def test_memory_is_compared_between_the_thirds_of_one_server(load):
    progress = load("chaos_soak").Progress()
    progress.samples = [
        [],
        [(0, 9.0), (10, 9.0)],
        [(number, float(number // 100)) for number in range(100, 401)],
    ]
    assert progress.thirds() == (2.0, 3.0)


def test_an_answer_must_be_the_one_that_is_due(load):
    progress = load("chaos_soak").Progress()
    for outcome, wanted in ((200, 200), (400, 400), (200, 400), (503, 200), ("ReadError", 200)):
        progress.count(outcome, wanted)
    assert (progress.sent, progress.answered, progress.refused) == (5, 2, 1)
    assert progress.lost == {"200 for 400": 1, "ReadError for 200": 1}


def test_a_part_that_does_not_exist_is_refused():
    command = [sys.executable, str(BENCHMARKS / "server_chaos.py"), "--parts", "stops,naps"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "no part is called naps; there are: processes, restarts" in done.stderr


@pytest.mark.slow
@pytest.mark.server
@pytest.mark.timeout(600)
def test_an_interrupted_run_ends_its_server_and_goes_on(tmp_path):
    """SIGTERM after the first row; then the rest of two short parts, without that row."""
    port, _ = free_ports(2)
    command = [sys.executable, str(BENCHMARKS / "server_chaos.py"), "--short", "--resume"]
    command += ["--parts", "restarts", "--port", str(port), "--out", str(tmp_path)]
    file = tmp_path / "chaos.json"
    with subprocess.Popen(command, env=os.environ, stderr=subprocess.PIPE, text=True) as run:
        while not file.exists():
            assert run.poll() is None, run.stderr.read()
            time.sleep(0.1)
        family = psutil.Process(run.pid).children(recursive=True)
        run.send_signal(signal.SIGTERM)
        assert "--resume goes on" in run.communicate()[1]
    assert run.returncode == 130
    assert not [one for one in family if one.is_running() and one.status() != psutil.STATUS_ZOMBIE]
    first = json.loads(file.read_text())["rows"]
    done = subprocess.run(command, env=os.environ, capture_output=True, text=True, check=False)
    rows = json.loads(file.read_text())["rows"]
    assert rows[0] == first[0]
    assert [row["what"] for row in rows] == ["kill -9 launcher", "kill -9 GCS", "kill -9 raylet"]
    assert all(row["met"] for row in rows), done.stderr
    assert done.returncode == 0
