"""A real server on a free port, with HAProxy, a shared host, a host of two replicas and the gateway.

The tests run in order on one server; the last one drains it. Others start servers that shall fail or be cut.
"""

import json
import os
import signal
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest

pytestmark = pytest.mark.server

MODELS = [
    {"name": "dense", "path": "dense"},
    {"name": "moe", "path": "moe"},
    {"name": "small", "path": "dense", "admission": {"min_items": 1, "max_items": 8}},
    {"name": "twice", "path": "moe", "replicas": {"min": 2, "max": 2}},
]


@pytest.fixture(scope="module")
def server(start_server):
    more = {
        "logging": {"format": "json", "requests": True},
        "callers": {"trusted_proxies": ["127.0.0.2"]},
    }
    one = start_server(MODELS, **more).wait_until_ready()
    one.classify("dense", "sleep 0.6")  # so that a pass may take 6 s before it counts as one that hangs
    return one


def test_ready_means_that_every_model_answers(server):
    assert httpx.get(f"{server.url}/v2/health/ready").json() == {"ready": True}
    for model in MODELS:
        assert server.classify(model["name"], ["3", "-3"]).status_code == 200


def test_answers_by_host_and_by_gateway_are_the_same(server):
    for model in MODELS:
        direct = server.classify(model["name"], ["3", "-1"]).json()
        through = server.classify(model["name"], ["3", "-1"], path="/classify").json()
        assert direct["predictions"] == through["predictions"]
        assert [best[0]["label"] for best in direct["predictions"]] == ["no", "yes"]


def test_errors_keep_their_status_on_both_ways(server):
    for path in (None, "/classify"):
        unusable = server.classify("dense", ["1", "unusable"], path=path)
        assert (unusable.status_code, unusable.json()["code"]) == (422, "unusable_item")
        assert "item 1" in unusable.json()["error"]
        unknown = server.classify("nobody", "1", path=path)
        assert (unknown.status_code, unknown.json()["code"]) == (404, "unknown_model")
        crash = server.classify("dense", ["crash"], path=path)
        assert (crash.status_code, crash.json()["code"]) == (500, "internal")


@pytest.mark.parametrize("path", ["/v2/models/dense/classify", "/classify"])
@pytest.mark.parametrize(("address", "caller"), [("127.0.0.2", "203.0.113.9"), ("127.0.0.3", "127.0.0.3")])
def test_a_trusted_proxy_alone_says_who_the_caller_is(server, until, path, address, caller):
    headers = {"X-Forwarded-For": "6.6.6.6, 203.0.113.9", "X-Request-Id": f"of-{address}{path}"}
    with httpx.Client(transport=httpx.HTTPTransport(local_address=address), timeout=20) as client:
        body = {"model": "dense", "inputs": "1"} if path == "/classify" else {"inputs": "1"}
        assert client.post(server.url + path, json=body, headers=headers).status_code == 200
    until(lambda: headers["X-Request-Id"] in server.output)
    (line,) = [line for line in server.lines if headers["X-Request-Id"] in line]
    assert json.loads(line)["caller"] == caller


@pytest.mark.parametrize("path", ["/v2/models/dense/classify", "/classify"])
def test_pages_of_other_sites_are_refused_on_both_ways(server, path):
    body = {"model": "dense", "inputs": "1"} if path == "/classify" else {"inputs": "1"}
    for headers, status in (
        ({"Origin": server.url}, 200),
        ({"Origin": "http://evil.example"}, 403),
        ({"Sec-Fetch-Site": "cross-site"}, 403),
        ({"Host": "evil.example"}, 403),
        ({"Host": f"localhost:{server.config['server']['port']}"}, 200),
    ):
        assert httpx.post(server.url + path, json=body, headers=headers, timeout=20).status_code == status


def test_the_index_lists_every_model(server):
    index = httpx.post(f"{server.url}/v2/repository/index").json()
    assert {entry["name"]: entry["state"] for entry in index} == {m["name"]: "READY" for m in MODELS}


def test_both_replicas_are_asked_and_merged(server):
    for _ in range(20):
        server.classify("twice", "1")
    stats = httpx.get(f"{server.url}/v2/models/twice/stats").json()
    experts = httpx.get(f"{server.url}/v2/models/twice/experts").json()
    assert stats["replicas"] == experts["replicas"] == 2
    counted = stats["model_stats"][0]["inference_count"]
    assert counted >= 20
    assert experts["layers"][0]["tokens_total"] == [counted, 0]
    assert server.metric("fewshard_items_total", model="twice") == counted


def test_metrics_count_every_request_once(server):
    before = server.metric("fewshard_requests_total", model="dense", outcome="ok")
    for path in (None, None, "/classify"):
        server.classify("dense", "1", path=path)
    assert server.metric("fewshard_requests_total", model="dense", outcome="ok") == before + 3
    text = httpx.get(f"{server.url}/metrics").text
    assert text.count("# TYPE fewshard_requests_total counter") == 1
    replicas = {part for part in text.split('"') if part in ("models", "model-twice", "gateway")}
    assert replicas == {"models", "model-twice", "gateway"}


def test_every_refusal_is_counted_whether_the_replica_or_haproxy_refused(server):
    with ThreadPoolExecutor(24) as pool:
        calls = [pool.submit(server.classify, "small", "sleep 0.05") for _ in range(96)]
        answers = [call.result() for call in calls]
    assert Counter(answer.status_code for answer in answers).keys() == {200, 429}
    refused = [answer for answer in answers if answer.status_code == 429]
    by_haproxy = [answer for answer in refused if "too much is in flight" in answer.json()["error"]]
    assert len(by_haproxy) > len(refused) / 2
    assert {answer.json()["code"] for answer in refused} == {"overloaded"}
    assert all(int(answer.headers["retry-after"]) >= 1 for answer in refused)
    stats = httpx.get(f"{server.url}/v2/models/small/stats").json()["model_stats"][0]["inference_stats"]
    assert stats["fail"]["count"] == len(refused)
    assert server.metric("fewshard_requests_total", model="small", outcome="overloaded") == len(refused)


def test_a_slow_batch_blocks_neither_its_loop_nor_other_hosts(server, gate):
    slow = gate.hold(server, "dense")
    assert httpx.get(f"{server.url}/v2/models/dense").status_code == 200
    assert server.classify("twice", "1").status_code == 200
    assert slow.is_alive(), "the others were answered while it ran"
    gate.open()
    slow.join(20)
    assert slow.response.status_code == 200


def test_a_caller_that_leaves_is_not_run(server, gate, until):
    """One runner: while it is held, a request of another model waits, and its caller leaves."""
    before = server.metric("fewshard_items_total", model="moe")
    slow = gate.hold(server, "dense")
    for path in (None, "/classify"):
        with pytest.raises(httpx.ReadTimeout):
            server.classify("moe", "1", path=path, timeout_s=1)
    until(lambda: server.metric("fewshard_inflight_items", model="moe") == 0)
    assert slow.is_alive(), "both left while it ran"
    gate.open()
    slow.join(20)
    server.classify("dense", "1")
    assert server.metric("fewshard_items_total", model="moe") == before


def test_a_replica_that_dies_is_survived_and_replaced(server):
    os.kill(server.replicas("twice")[0], signal.SIGKILL)
    answers = [server.classify("twice", "1", path="/classify") for _ in range(10)]
    assert [answer.status_code for answer in answers] == [200] * 10


class Client(threading.Thread):
    """Sends one request after another until the server is gone; `outcomes` by the time of sending."""

    def __init__(self, server, model):
        super().__init__(daemon=True)
        self.server, self.model, self.outcomes = server, model, []
        self.start()

    def run(self):
        outcome, url = None, f"{self.server.url}/v2/models/{self.model}/classify"
        with httpx.Client(timeout=20) as session:  # made once: it takes longer than a request
            while outcome != "ConnectError":
                sent_at = time.monotonic()
                try:
                    outcome = session.post(url, json={"inputs": "sleep 0.01"}).status_code
                except httpx.HTTPError as error:
                    outcome = type(error).__name__
                self.outcomes.append((sent_at, outcome))


def test_sigterm_answers_what_was_accepted_and_exits_clean(server, gate, until):
    stats = f"{server.url}/v2/models/twice/stats"
    until(lambda: httpx.get(stats, timeout=10).json()["replicas"] == 2)
    clients = [Client(server, "twice") for _ in range(8)]
    until(lambda: sum(len(client.outcomes) for client in clients) > 40)
    gate.hold(server, "dense")
    gate.queue(server, "moe", path="/classify")
    gate.hold(server, "twice")
    signalled_at = time.monotonic()
    server.signal(signal.SIGTERM)
    until(lambda: server.is_draining("dense", "twice"))
    late = server.classify("dense", "1", timeout_s=10)
    assert "fewshard_inflight_items{" in server.scrape(), "it is scraped while it drains"
    assert all(call.is_alive() for call in gate.calls), "they are still inside"
    gate.open()
    while server.process.poll() is None:
        server.scrape()
    for call in gate.calls:
        call.join(30)
    assert [call.error for call in gate.calls] == [None, None, None]
    assert [call.response.status_code for call in gate.calls] == [200, 200, 200]
    assert (late.status_code, late.json()["code"]) == (503, "not_ready")
    assert server.wait(30) == 0
    for client in clients:
        client.join(30)
    outcomes = [outcome for client in clients for outcome in client.outcomes]
    before = [outcome for sent_at, outcome in outcomes if sent_at < signalled_at]
    assert set(before) == {200}
    assert len(before) > 20
    assert 503 in {outcome for sent_at, outcome in outcomes if sent_at > signalled_at}
    with pytest.raises(httpx.ConnectError):
        server.classify("dense", "1")
    until(lambda: server.processes() == [], 20)


def test_models_that_cannot_be_loaded_end_the_command_with_their_reasons(start_server):
    server = start_server(
        [
            {"name": "good", "path": "dense"},
            {"name": "gone", "path": "missing"},
            {"name": "hurt", "path": "damaged"},
        ]
    )
    assert server.wait() == 1
    server.wait_for("hurt: golden input 3")
    assert "READY" not in server.output
    assert "gone: FileNotFoundError: no checkpoint for gone" in server.output


@pytest.fixture(scope="module")
def mortal(start_server):
    """One more server, of a model with a process of its own: scraped while it starts, then stopped."""
    server = start_server([{"name": "a", "path": "dense", "replicas": {"min": 1}}])
    server.scraped = []
    while "READY\n" not in server.lines:
        assert server.process.poll() is None, server.output
        server.scraped.append(server.scrape())
        time.sleep(0.1)
    return server


def test_a_server_is_scraped_while_it_starts(mortal):
    assert len(mortal.scraped) > 5
    assert "fewshard_model_info{" in mortal.scrape()


def test_a_second_signal_ends_at_once(mortal, gate, until):
    slow = gate.hold(mortal, "a")
    mortal.signal(signal.SIGINT)
    until(lambda: mortal.is_draining("a"))
    assert "fewshard_inflight_items{" in mortal.scrape()
    assert mortal.process.poll() is None, "the first signal waits for the answer"
    mortal.signal(signal.SIGINT)
    assert mortal.wait(30) == 130
    slow.join(10)
    assert slow.error is not None or slow.response.status_code in (500, 503)
