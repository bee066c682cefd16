"""Spans reach a collector with their times and parents, exemplars name them, and nothing is sent unasked."""

import json
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from itertools import pairwise

import pytest

from fewshard_serve.core import Timings
from fewshard_serve.http.middleware import AccessMiddleware, AccessSettings, TracingSettings
from fewshard_serve.http.request import Request
from fewshard_serve.metrics import Metrics

TRACE = "0af7651916cd43dd8448eb211c80319c"
PARENT = "b7ad6b7169203331"


class Collector:
    def __init__(self, status=200):
        self.spans, self.bodies = [], []
        collector = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self):
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                collector.bodies.append(body)
                for resource in body["resourceSpans"]:
                    for scope in resource["scopeSpans"]:
                        collector.spans += scope["spans"]
                self.send_response(status)
                self.end_headers()

            def log_message(self, *_):
                pass

        self.server = HTTPServer(("127.0.0.1", 0), Handler)
        self.endpoint = f"http://127.0.0.1:{self.server.server_port}/v1/traces"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def close(self):
        self.server.shutdown()
        self.server.server_close()


@pytest.fixture
def collector():
    one = Collector()
    yield one
    one.close()


def request(traceparent=None):
    headers = [] if traceparent is None else [(b"traceparent", traceparent.encode())]
    scope = {"type": "http", "method": "POST", "path": "/v2/models/m/classify", "headers": headers}
    made = Request(scope, None)
    made.id, made.model_name = "id-1", "m"
    return made


def traced(collector, made, outcome="ok", share=0.0):
    """The trace's id, once all has been sent."""
    doors = AccessMiddleware(AccessSettings(tracing=TracingSettings(collector.endpoint, share)))
    doors.trace(made, "classify", outcome)
    doors.tracing.close()
    return made.trace_id


def seconds(span):
    return (int(span["endTimeUnixNano"]) - int(span["startTimeUnixNano"])) / 1e9


def test_a_request_and_its_stages(collector):
    made = request(f"00-{TRACE}-{PARENT}-01")
    made.started_at -= 2.0
    made.note_answer(Timings(preprocess_s=0.25, queue_s=0.5, infer_s=1.0))
    assert traced(collector, made) == TRACE
    by_name = {span["name"]: span for span in collector.spans}
    root = by_name.pop("classify m")
    assert (root["traceId"], root["parentSpanId"], root["kind"]) == (TRACE, PARENT, 2)
    attributes = {each["key"]: each["value"]["stringValue"] for each in root["attributes"]}
    assert attributes["fewshard.request_id"] == "id-1"
    assert 2.0 <= seconds(root) < 20, "from its arrival until it is reported"
    assert {name: round(seconds(span), 3) for name, span in by_name.items()} == {
        "preprocess": 0.25,
        "queue": 0.5,
        "infer": 1.0,
    }
    assert {span["parentSpanId"] for span in by_name.values()} == {root["spanId"]}
    order = [by_name[name] for name in ("preprocess", "queue", "infer")]
    for first, second in pairwise(order):
        assert abs(int(first["endTimeUnixNano"]) - int(second["startTimeUnixNano"])) < 1000
    assert int(root["startTimeUnixNano"]) <= int(order[0]["startTimeUnixNano"])


def test_the_exchange_between_shards_is_a_part_of_the_pass(collector):
    made = request(f"00-{TRACE}-{PARENT}-01")
    made.started_at -= 2.0
    made.note_answer(Timings(preprocess_s=0.25, queue_s=0.5, infer_s=1.0, exchange_s=0.125))
    traced(collector, made)
    by_name = {span["name"]: span for span in collector.spans}
    assert seconds(by_name["exchange"]) == pytest.approx(0.125, abs=1e-5)
    assert by_name["exchange"]["endTimeUnixNano"] == by_name["infer"]["endTimeUnixNano"]


def test_a_refused_request_has_an_error_and_no_stages(collector):
    traced(collector, request(f"00-{TRACE}-{PARENT}-01"), outcome="overloaded")
    (span,) = collector.spans
    assert span["status"] == {"code": 2, "message": "overloaded"}


@pytest.mark.parametrize("traceparent", [None, f"00-{TRACE}-{PARENT}-00", "nonsense"])
def test_what_nobody_wants_traced_is_not(collector, traceparent):
    assert traced(collector, request(traceparent)) == ""
    assert collector.spans == []


def test_a_share_of_the_others_begins_traces(collector):
    trace_id = traced(collector, request(), share=1.0)
    (span,) = collector.spans
    assert (span["traceId"], span["parentSpanId"]) == (trace_id, "")


def test_the_trace_is_the_exemplar_of_its_bucket(collector):
    trace_id, metrics = traced(collector, request(), share=1.0), Metrics()
    metrics.observe_request("m", "classify", "ok", 0.015, trace_id)
    text = metrics.render(is_open_metrics=True).decode()
    (line,) = [line for line in text.splitlines() if trace_id in line]
    assert line.startswith('fewshard_request_seconds_bucket{model="m",le="0.02"} 1 # {trace_id=')


def test_a_collector_that_refuses_is_said_once_and_harms_nothing(caplog):
    collector = Collector(status=503)
    doors = AccessMiddleware(AccessSettings(tracing=TracingSettings(collector.endpoint, 1.0)))
    for _ in range(3):
        doors.trace(request(), "classify", "ok")
    doors.tracing.close()
    collector.close()
    assert caplog.text.count("no traces reach") == 1


def test_without_the_section_nothing_is_traced():
    made = request(f"00-{TRACE}-{PARENT}-01")
    AccessMiddleware().trace(made, "classify", "ok")
    assert made.trace_id == ""
