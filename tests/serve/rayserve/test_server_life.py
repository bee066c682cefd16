"""A real server whose models come and go while others answer. Tests run in order."""

import json
import os
import signal
import threading
from collections import Counter
from pathlib import Path

import httpx
import numpy as np
import pytest
import tritonclient.grpc as triton_grpc
import tritonclient.http as triton_http
from tritonclient.utils import InferenceServerException

pytestmark = pytest.mark.server

OWN = {"replicas": {"min": 1}}
STEADY = {"name": "steady", "path": "dense", **OWN}
SHARED = {"name": "shared", "path": "dense"}
EXTRA = {"name": "extra", "path": "dense", **OWN}
BESIDE = {"name": "beside", "path": "moe"}
JOINT = {"name": "joint", "stages": ["shared", "steady"], "accept_above": 0.9}


@pytest.fixture(scope="module")
def server(start_server):
    return start_server([STEADY, SHARED]).wait_until_ready()


class Clients:
    """One for each model, with one request after the other, until the block ends; half by the gateway."""

    def __init__(self, server, *models):
        self.outcomes, self._stop = {model: Counter() for model in models}, threading.Event()
        self._url = server.url
        self._threads = [threading.Thread(target=self._run, args=(each,), daemon=True) for each in models]

    def __enter__(self):
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_):
        self._stop.set()
        for thread in self._threads:
            thread.join(60)

    def _run(self, model):
        own, body = f"{self._url}/v2/models/{model}/classify", {"inputs": "sleep 0.02"}
        with httpx.Client(timeout=60) as session:
            while not self._stop.is_set():
                for url, sent in ((own, body), (f"{self._url}/classify", {**body, "model": model})):
                    try:
                        answer = session.post(url, json=sent)
                        self.outcomes[model][answer.status_code] += 1
                    except httpx.HTTPError as error:
                        self.outcomes[model][repr(error)] += 1

    def assert_all_answered(self):
        for model, outcomes in self.outcomes.items():
            assert set(outcomes) == {200}, (model, outcomes)
            assert outcomes[200] > 10, (model, outcomes)


def change(server, action, model, **more):
    return httpx.post(f"{server.url}/v2/repository/models/{model}/{action}", timeout=300, **more)


def states(server):
    lines = httpx.post(f"{server.url}/v2/repository/index", timeout=20).json()
    return {line["name"]: (line["state"], line["reason"]) for line in lines}


def write(server, models, cascades=()):
    server.write({**server.config, "models": models, "cascades": list(cascades)})


def is_ready(server):
    return httpx.get(f"{server.url}/v2/health/ready", timeout=20).status_code == 200


def test_a_model_that_the_file_lacks_is_not_loaded(server):
    answer = change(server, "load", "extra")
    assert (answer.status_code, answer.json()["code"]) == (409, "change_refused")
    assert "the configuration has no model 'extra'; it has: steady, shared" in answer.json()["error"]


def test_models_are_loaded_and_unloaded_while_others_answer(server, until):
    write(server, [STEADY, SHARED, EXTRA, BESIDE])
    with Clients(server, "steady", "shared") as clients:
        for model in ("extra", "beside"):  # with a process of its own, and in that of others
            assert change(server, "load", model).json() == {"name": model, "state": "READY"}
            assert states(server)[model] == ("READY", "")
            assert server.classify(model, "3").json()["predictions"]
            assert server.classify(model, "3", path="/classify").json()["predictions"]
            assert is_ready(server)
        for model in ("extra", "beside"):
            answer = change(server, "unload", model)
            assert answer.json() == {"name": model, "state": "UNAVAILABLE"}, answer.text
            assert states(server)[model] == ("UNAVAILABLE", "unloaded")
            assert is_ready(server)
            for path in (None, "/classify"):
                refused = server.classify(model, "3", path=path)
                assert refused.status_code == 404, refused.text
    clients.assert_all_answered()
    assert "loads it again" in server.classify("extra", "3", path="/classify").json()["error"]
    assert change(server, "load", "extra").status_code == 200, "once more, under the same name"
    assert server.classify("extra", "3", path="/classify").status_code == 200


def test_what_a_model_has_accepted_is_answered_before_it_is_unloaded(server, gate):
    held = gate.hold(server, "extra")
    by_gateway = gate.hold(server, "shared", path="/classify")
    thread = threading.Thread(target=change, args=(server, "unload", "extra"))
    thread.start()
    server.wait_for("unloaded beside")
    gate.open()
    thread.join(120)
    held.join(60), by_gateway.join(60)
    assert held.response.status_code == by_gateway.response.status_code == 200
    assert states(server)["extra"] == ("UNAVAILABLE", "unloaded")


@pytest.mark.slow
def test_a_model_that_cannot_be_loaded_leaves_the_others_alone(server):
    write(server, [STEADY, SHARED, {**EXTRA, "path": "missing"}, {**BESIDE, "path": "missing"}])
    with Clients(server, "steady", "shared") as clients:
        for model in ("extra", "beside"):
            answer = change(server, "load", model)
            assert answer.status_code == 409, answer.text
            assert f"no checkpoint for {model}" in answer.json()["error"]
    clients.assert_all_answered()
    assert is_ready(server)


@pytest.mark.slow
def test_the_file_adds_changes_and_removes_models_and_cascades(server, until):
    write(server, [STEADY, {**SHARED, "path": "contrary"}, EXTRA], [JOINT])
    with Clients(server, "steady", "shared") as clients:
        server.signal(signal.SIGHUP)
        server.wait_for("updated ")
        until(lambda: server.classify("joint", "3").status_code == 200)
        assert server.classify("shared", "3").json()["predictions"][0][0]["label"] == "yes"
        refused = change(server, "unload", "shared")
        assert refused.status_code == 409
        assert "'shared' is needed: the cascade 'joint' has it as a stage" in refused.json()["error"]
        assert change(server, "unload", "joint").status_code == 200
        assert server.classify("joint", "3").status_code == 404
    clients.assert_all_answered()


@pytest.mark.slow
def test_a_shadow_is_needed_and_a_model_that_answers_stays_where_it_is(server):
    write(server, [STEADY, SHARED, {**EXTRA, "shadow": "shared"}])
    assert change(server, "load", "extra").status_code == 200
    write(server, [STEADY, {**SHARED, **OWN}, {**EXTRA, "shadow": "shared"}])
    server.signal(signal.SIGHUP)
    server.wait_for("not updated: shared cannot get or give up processes of its own")
    refused = change(server, "unload", "shared")
    assert "it is the shadow of 'extra'" in refused.json()["error"]


@pytest.mark.slow
def test_a_file_with_mistakes_changes_nothing(server, until):
    write(server, [STEADY, {**EXTRA, "shadow": "shared"}])
    server.signal(signal.SIGHUP)
    server.wait_for("the shadow of 'extra' must be another model")
    assert server.classify("shared", "3").status_code == 200


@pytest.mark.slow
def test_tritons_clients_load_and_unload(server):
    write(server, [STEADY, SHARED, EXTRA, BESIDE])
    assert change(server, "load", "beside").status_code == 200
    over_http = triton_http.InferenceServerClient(server.url.removeprefix("http://"), network_timeout=300)
    over_grpc = triton_grpc.InferenceServerClient(f"127.0.0.1:{server.config['server']['grpc_port']}")
    for client in (over_http, over_grpc):
        client.unload_model("extra")
        assert not client.is_model_ready("extra")
        with pytest.raises(InferenceServerException, match="no model 'extra' is loaded"):
            client.unload_model("extra")
        client.load_model("extra")
        assert client.is_model_ready("extra")
        with pytest.raises(InferenceServerException, match="'config' is not taken"):
            client.load_model("extra", config=json.dumps({"max_batch_size": 8}))
        with pytest.raises(InferenceServerException, match="unload_dependents is not offered"):
            client.unload_model("extra", unload_dependents=True)
    over_http.close(), over_grpc.close()


def label_over_grpc(client, model, version=""):
    tensor = triton_grpc.InferInput("text", [1], "BYTES")
    tensor.set_data_from_numpy(np.array([b"7"], object))
    answer = client.infer(model, [tensor], model_version=version)
    return answer.as_numpy("label")[0], answer.get_response().model_version


@pytest.mark.slow
def test_versions_are_loaded_together_and_asked_for_by_their_names(server):
    many = {"name": "many", "versions": {"v1": "dense", "v2": "contrary"}, "split": {"v1": 1, "v2": 0}, **OWN}
    write(server, [STEADY, SHARED, EXTRA, BESIDE, many])
    assert change(server, "load", "many").status_code == 200
    client = triton_grpc.InferenceServerClient(f"127.0.0.1:{server.config['server']['grpc_port']}")
    for version, label in (("v1", "no"), ("v2", "yes")):
        answer = server.classify(f"many/versions/{version}", "7").json()
        assert (answer["model"], answer["predictions"][0][0]["label"]) == ("many", label)
        assert client.is_model_ready("many", version)
        assert label_over_grpc(client, "many", version) == (label.encode(), version)
    assert label_over_grpc(client, "many") == (b"no", "v1")
    assert list(client.get_model_metadata("many").versions) == ["v1", "v2"]
    assert [each.version for each in client.get_inference_statistics("many").model_stats] == ["v1", "v2"]
    assert server.classify("many", "7", path="/classify").json()["predictions"][0][0]["label"] == "no"
    with pytest.raises(InferenceServerException, match="has no version 'v3'; it has 'v1', 'v2'"):
        client.infer("many", [], model_version="v3")
    write(server, [STEADY, SHARED, EXTRA, BESIDE, {**many, "split": {"v1": 1, "v2": 1}}])
    with Clients(server, "steady", "many") as clients:
        assert change(server, "load", "many").status_code == 200
    clients.assert_all_answered()
    write(server, [STEADY, SHARED, EXTRA, BESIDE, {**many, "versions": {"v1": "dense", "v2": "animals"}}])
    assert change(server, "load", "many").status_code == 200, "v2 has no part of the split"
    write(
        server,
        [STEADY, SHARED, EXTRA, {**many, "versions": {"v1": "animals", "v2": "dense"}, "split": {1: 1}}],
    )
    refused = change(server, "load", "many")
    assert "which is no version" in refused.json()["error"]
    split = {**many, "versions": {"v1": "animals", "v2": "dense"}, "split": {"v1": 1, "v2": 1}}
    write(server, [STEADY, SHARED, EXTRA, split])
    refused = change(server, "load", "many")
    assert "have different labels" in refused.json()["error"]
    assert server.classify("many", "7").status_code == 200
    assert change(server, "unload", "many").status_code == 200
    client.close()


@pytest.mark.slow
def test_a_new_gateway_knows_the_models_that_were_added(server, until):
    (gateway,) = [pid for pid in server.processes() if b"ServeReplica:gateway:" in command_of(pid)]
    os.kill(gateway, signal.SIGKILL)
    until(lambda: states_or_none(server) is not None and "beside" in states_or_none(server))
    until(lambda: server.classify("extra", "3", path="/classify").status_code == 200)
    assert change(server, "unload", "beside").status_code == 200


def command_of(pid):
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""


def states_or_none(server):
    try:
        return states(server)
    except (httpx.HTTPError, ValueError, KeyError, TypeError):
        return None


@pytest.mark.slow
def test_the_last_model_stays(server):
    for model in ("extra", "shared"):
        assert change(server, "unload", model).status_code == 200
    refused = change(server, "unload", "steady")
    assert "'steady' is the only model" in refused.json()["error"]
    server.signal(signal.SIGTERM)
    assert server.wait() == 0
