"""A real Prometheus scrapes a real server under a small load: what it says is what was sent.

The tests run in order: the load first, then questions about it, then a replica that hangs.
"""

import importlib.util
import json
import os
import re
import signal
import sys
import time
from pathlib import Path

import httpx
import pytest

pytestmark = pytest.mark.server

ROOT = Path(__file__).parents[3]
COST = {"usd_per_hour": 3.6, "watts": 50}
MODELS = [
    {"name": "dense", "path": "dense", "cost": COST, "shadow": {"model": "moe", "share": 1.0}},
    {"name": "moe", "path": "moe", "cost": COST},
    {"name": "group", "path": "group"},
    {"name": "twice", "path": "moe", "replicas": {"min": 2}, "shadow": {"model": "contrary", "share": 1.0}},
    {"name": "contrary", "path": "contrary"},
]
CASCADES = [{"name": "auto", "stages": ["dense", "moe"], "accept_above": 0.9}]
SENT = {  # model -> texts of each request
    "dense": [["3", "-1"], ["2"], ["-4", "-5", "-6"]] * 100,
    "moe": [["1"]] * 40,
    "group": [["1", "2"]] * 10,
    "twice": [["5"]] * 60 + [["-1", "-2"]] * 30,
    "auto": [["3", "0.1"]] * 20,
}
RATE = "30s"


def load(name, path):
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


prometheus_server = load("prometheus_server", Path(__file__).with_name("prometheus_server.py"))


@pytest.fixture(scope="module")
def server(start_server):
    return start_server(MODELS, cascades=CASCADES).wait_until_ready()


@pytest.fixture(scope="module")
def prometheus(server, tmp_path_factory):
    target = server.url.removeprefix("http://")
    one = prometheus_server.Prometheus(
        tmp_path_factory.mktemp("prometheus"), {"static_configs": [{"targets": [target]}]}
    )
    yield one.wait_until("count(fewshard_model_info) >= 6")
    one.close()


@pytest.fixture(scope="module")
def discovering(server, tmp_path_factory):
    """A second one, that finds every replica by itself; it takes 5 s over that, while the load is sent."""
    discovery = {"http_sd_configs": [{"url": f"{server.url}/metrics/targets", "refresh_interval": "5s"}]}
    one = prometheus_server.Prometheus(tmp_path_factory.mktemp("discovering"), discovery)
    yield one
    one.close()


def wait_for_the_load(prometheus):
    """Until its last request has been scraped, and its youngest series twice, as a rate needs it."""
    last = 'fewshard_requests_total{model="dense",outcome="internal"}'
    shadowed = 'sum(fewshard_shadow_items_total{model="twice"})'
    prometheus.wait_until(f"sum({last}) == 7")
    prometheus.wait_until(f"{shadowed} == {items('twice')}")
    return prometheus.wait_until(f"count_over_time({last}[30s]) >= 2")


@pytest.fixture(scope="module")
def sent(server, prometheus, discovering):
    """Send the load, with some bad requests; returns once it has been scraped."""
    for model, requests in SENT.items():
        for texts in requests:
            assert server.classify(model, texts).status_code == 200
    for _ in range(7):
        assert server.classify("dense", ["unusable"]).status_code == 422
    for _ in range(7):
        assert server.classify("dense", ["crash"], path="/classify").status_code == 500
    return wait_for_the_load(prometheus)


def items(model):
    return sum(map(len, SENT[model]))


def expected():
    """PromQL and what it must answer."""
    for model, requests in SENT.items():
        ok = f'sum(fewshard_requests_total{{model="{model}",outcome="ok"}})'
        yield ok, len(requests)
    yield 'sum(fewshard_requests_total{model="dense",outcome="unusable_item"})', 7
    yield 'sum(fewshard_requests_total{model="dense",outcome="internal"})', 7
    yield 'sum(fewshard_request_seconds_count{model="dense"})', len(SENT["dense"]) + 14
    yield 'sum(fewshard_predictions_total{model="group"})', items("group")
    yield 'sum(fewshard_predictions_total{model="twice",label="no"})', 60
    yield 'sum(fewshard_predictions_total{model="twice",label="yes"})', 60
    yield 'sum(fewshard_confidence_count{model="twice"})', items("twice")
    yield 'sum(fewshard_expert_tokens_total{model="twice",expert="0"})', items("twice")
    yield 'sum(fewshard_expert_tokens_total{model="twice",expert="1"})', 0
    yield 'sum(fewshard_items_total{model="twice"})', items("twice")
    yield 'sum(fewshard_tokens_total{model="twice",state="real"})', 60 + 30 * 4
    yield 'sum(fewshard_batch_items_sum{model="group"})', items("group")
    yield (
        'sum(fewshard_shadow_items_total{model="twice",shadow="contrary",outcome="disagree"})',
        items("twice"),
    )
    yield 'sum(fewshard_shadow_items_total{model="twice",shadow="contrary",outcome="agree"})', 0
    yield 'sum(fewshard_cascade_items_total{model="auto",stage="dense"})', 20
    yield 'sum(fewshard_cascade_items_total{model="auto",stage="moe"})', 20
    yield "count(fewshard_model_info)", 7
    yield "count(fewshard_build_info)", 5
    yield "sum(fewshard_replica_up)", 4
    yield "sum(fewshard_replicas_wanted)", 4
    yield 'min(fewshard_group_size{model="group"})', 2


def test_what_prometheus_says_is_what_was_sent(sent):
    rows = [(query, number, sent.value(query)) for query, number in expected()]
    table = "\n".join(f"{number:>6} {scraped:>8g}  {query}" for query, number, scraped in rows)
    print(f"\n  sent  scraped  query\n{table}")
    assert [row for row in rows if row[1] != row[2]] == []


def test_cost_and_energy_are_the_time_in_forward_passes(sent):
    busy = sent.value('sum(fewshard_infer_seconds_total{model="dense"})')
    assert busy > 0
    assert sent.value('sum(fewshard_cost_usd_total{model="dense"})') == pytest.approx(busy * 0.001)
    joules = 'sum(fewshard_energy_joules_total{model="dense",method="modelled"})'
    assert sent.value(joules) == pytest.approx(busy * 50)


def dashboards():
    paths = sorted((ROOT / "deploy/grafana/dashboards").glob("*.json"))
    return {path.stem: json.loads(path.read_text()) for path in paths}


NOT_HERE = re.compile(r"\bfewshard_(expert_share_ratio|canary_\w+)\{")
"""Only a model with thousands of series, and one with a canary, have these; no server of this test is one."""


def test_every_query_of_every_dashboard_is_answered_with_data(sent):
    wrong = []
    num_queries = 0
    for name, board in dashboards().items():
        for panel in board["panels"]:
            for target in panel["targets"]:
                query = target["expr"].replace("$model", ".*").replace("$__rate_interval", RATE)
                num_queries += 1
                if bool(sent.query(query)) == bool(NOT_HERE.search(query)):
                    wrong.append((name, panel["title"], query))
    assert num_queries > 50
    assert wrong == []


def test_recording_rules_have_data_and_alerts_are_known(sent):
    for record in ("fewshard:requests:rate5m", "fewshard:unavailable:ratio5m", "fewshard:slow:ratio5m"):
        sent.wait_until(f"count({record})")  # rules are evaluated some seconds after the scrape
    assert sent.value("sum(fewshard:unavailable:ratio5m{model='twice'})") == 0
    pending = {labels["alertname"] for labels, _ in sent.query("ALERTS")}
    assert "FewshardGroupShort" in pending
    assert "FewshardMetricsAbsent" not in pending


def test_every_replica_is_found_and_scraped_by_itself(sent, server, discovering):
    targets = httpx.get(f"{server.url}/metrics/targets", timeout=10).json()
    assert len(targets) == 5
    assert len({target["labels"]["__metrics_path__"] for target in targets}) == 4
    discovering.wait_until("count(up) == 5 and sum(up) == 5")
    wait_for_the_load(discovering)
    for query, number in expected():
        if "replica" not in query:
            assert discovering.value(query) == number, query
    assert discovering.value("sum(fewshard_replica_up)") == 4


def processes_of_twice(server):
    """The processes of a model's replicas, by the title that Ray gives them."""
    found = [pid for pid in server.processes() if b"ServeReplica:model-twice" in cmdline(pid)]
    assert len(found) == 2
    return found


def cmdline(pid):
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""


def test_a_replica_that_hangs_is_named_within_a_second_and_hides_no_other(sent, server):
    pid = processes_of_twice(server)[0]
    os.kill(pid, signal.SIGSTOP)
    try:
        started_at = time.monotonic()
        text = httpx.get(f"{server.url}/metrics", timeout=10).text
        elapsed_s = time.monotonic() - started_at
    finally:
        os.kill(pid, signal.SIGCONT)
    up = dict(
        re.findall(r'^fewshard_replica_up\{application="model-twice",replica="(.*)"\} (\d)$', text, re.M)
    )
    assert sorted(up.values()) == ["0", "1"]
    assert "unknown" not in up
    counted = {line.split('replica="')[1].split('"')[0] for line in text.splitlines()
               if line.startswith("fewshard_items_total") and 'model="twice"' in line}  # fmt: skip
    assert counted == {name for name, value in up.items() if value == "1"}
    assert elapsed_s < 1.0
