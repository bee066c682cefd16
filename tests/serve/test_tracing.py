"""Spans reach a collector with their times and parents, exemplars name them, and nothing is sent unasked."""

import gzip
import os
import socket
import subprocess
import sys
import threading
import time
from contextvars import copy_context
from http.server import BaseHTTPRequestHandler, HTTPServer
from itertools import pairwise

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status

from fewshard_serve import __version__
from fewshard_serve.core import Timings
from fewshard_serve.http.middleware import AccessMiddleware, AccessSettings, TracingSettings
from fewshard_serve.http.request import Request
from fewshard_serve.metrics import Metrics

TRACE = "0af7651916cd43dd8448eb211c80319c"
PARENT = "b7ad6b7169203331"


class Collector:
    """Takes spans as OTLP over HTTP; answers with `statuses` in turn, and with the last from then on."""

    def __init__(self, *statuses):
        self.spans, self.resources, self.headers, self.num_asked = [], [], [], 0
        collector = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self):
                body = self.rfile.read(int(self.headers["Content-Length"]))
                status = statuses[min(collector.num_asked, len(statuses) - 1)]
                collector.num_asked += 1
                collector.headers.append(self.headers)
                if status == 200:
                    collector.take(gzip.decompress(body) if self.headers["Content-Encoding"] else body)
                self.send_response(status)
                self.send_header("Retry-After", "0")
                self.end_headers()

            def log_message(self, *_):
                pass

        self.server = HTTPServer(("127.0.0.1", 0), Handler)
        self.base = f"http://127.0.0.1:{self.server.server_port}"
        self.endpoint = f"{self.base}/v1/traces"
        threading.Thread(target=self.server.serve_forever, args=(0.01,), daemon=True).start()

    def take(self, body):
        for resource in ExportTraceServiceRequest.FromString(body).resource_spans:
            self.resources.append(resource.resource)
            for scope in resource.scope_spans:
                self.spans += scope.spans

    def close(self):
        self.server.shutdown()
        self.server.server_close()


@pytest.fixture
def collector():
    one = Collector(200)
    yield one
    one.close()


@pytest.fixture(autouse=True)
def no_variables(monkeypatch):
    for name in [name for name in os.environ if name.startswith("OTEL_")]:
        monkeypatch.delenv(name)


def request(traceparent=None):
    headers = [(b"x-request-id", b"id-1")]
    if traceparent is not None:
        headers.append((b"traceparent", traceparent.encode()))
    scope = {"type": "http", "method": "POST", "path": "/v2/models/m/classify", "headers": headers}
    made = Request(scope, None)
    copy_context().run(AccessMiddleware().name, made)  # what it sets for log lines ends here
    made.model_name = "m"
    return made


def traced(endpoint, made, outcome="ok", share=0.0):
    """The trace's id, once all has been sent."""
    doors = AccessMiddleware(AccessSettings(tracing=TracingSettings(endpoint, share)))
    doors.trace(made, "classify", outcome)
    doors.tracing.close()
    return made.trace_id


def seconds(span):
    return (span.end_time_unix_nano - span.start_time_unix_nano) / 1e9


def attributes(of):
    return {each.key: getattr(each.value, each.value.WhichOneof("value")) for each in of.attributes}


def test_a_request_and_its_stages(collector):
    made = request(f"00-{TRACE}-{PARENT}-01")
    made.started_at -= 2.0
    made.note_answer(Timings(preprocess_s=0.25, queue_s=0.5, infer_s=1.0))
    assert traced(collector.endpoint, made) == TRACE
    by_name = {span.name: span for span in collector.spans}
    root = by_name.pop("classify m")
    assert (root.trace_id.hex(), root.parent_span_id.hex(), root.kind) == (
        TRACE,
        PARENT,
        Span.SPAN_KIND_SERVER,
    )
    assert attributes(root) == {
        "fewshard.model": "m",
        "fewshard.protocol": "classify",
        "fewshard.outcome": "ok",
        "fewshard.request_id": "id-1",
    }
    assert 2.0 <= seconds(root) < 20, "from its arrival until it is reported"
    assert {name: round(seconds(span), 3) for name, span in by_name.items()} == {
        "preprocess": 0.25,
        "queue": 0.5,
        "infer": 1.0,
    }
    assert {span.parent_span_id for span in by_name.values()} == {root.span_id}
    order = [by_name[name] for name in ("preprocess", "queue", "infer")]
    for first, second in pairwise(order):
        assert abs(first.end_time_unix_nano - second.start_time_unix_nano) < 1000
    assert root.start_time_unix_nano <= order[0].start_time_unix_nano
    assert root.status.code == Status.STATUS_CODE_UNSET


def test_the_service_is_named(collector):
    traced(collector.endpoint, request(), share=1.0)
    (resource,) = collector.resources
    assert attributes(resource)["service.name"] == "fewshard"
    assert attributes(resource)["service.version"] == __version__


def test_the_exchange_between_shards_is_a_part_of_the_pass(collector):
    made = request(f"00-{TRACE}-{PARENT}-01")
    made.started_at -= 2.0
    made.note_answer(Timings(preprocess_s=0.25, queue_s=0.5, infer_s=1.0, exchange_s=0.125))
    traced(collector.endpoint, made)
    by_name = {span.name: span for span in collector.spans}
    assert seconds(by_name["exchange"]) == pytest.approx(0.125, abs=1e-5)
    assert by_name["exchange"].end_time_unix_nano == by_name["infer"].end_time_unix_nano


def test_a_refused_request_has_an_error_and_no_stages(collector):
    traced(collector.endpoint, request(f"00-{TRACE}-{PARENT}-01"), outcome="overloaded")
    (span,) = collector.spans
    assert (span.status.code, span.status.message) == (Status.STATUS_CODE_ERROR, "overloaded")


@pytest.mark.parametrize("traceparent", [None, f"00-{TRACE}-{PARENT}-00", "nonsense"])
def test_what_nobody_wants_traced_is_not(collector, traceparent):
    assert traced(collector.endpoint, request(traceparent)) == ""
    assert collector.spans == []


def test_a_share_of_the_others_begins_traces(collector):
    trace_id = traced(collector.endpoint, request(), share=1.0)
    (span,) = collector.spans
    assert (span.trace_id.hex(), span.parent_span_id) == (trace_id, b"")


def test_the_trace_is_the_exemplar_of_its_bucket(collector):
    trace_id, metrics = traced(collector.endpoint, request(), share=1.0), Metrics()
    metrics.observe_request("m", "classify", "ok", 0.015, trace_id)
    text = metrics.render(is_open_metrics=True).decode()
    (line,) = [line for line in text.splitlines() if trace_id in line]
    assert line.startswith('fewshard_request_seconds_bucket{model="m",le="0.02"} 1 # {trace_id=')


def test_a_collector_that_refuses_is_said_once_and_harms_nothing(caplog):
    collector = Collector(400, 400, 200, 400)
    doors = AccessMiddleware(AccessSettings(tracing=TracingSettings(collector.endpoint, 1.0)))
    lines = []
    for _ in range(4):
        doors.trace(request(), "classify", "ok")
        doors.tracing._provider.force_flush()
        lines.append(len(caplog.records))
    doors.tracing.close()
    collector.close()
    assert caplog.text.count("no traces reach") == 2, "of the second series the log tells again"
    assert lines[0] == lines[1] == lines[2] < lines[3], "our line, and the exporter's own before it"
    assert "Failed to export spans batch code: 400" in caplog.text
    assert len(collector.spans) == 1


def test_the_collectors_password_reaches_it_and_no_log(caplog):
    collector = Collector(200, 400)
    endpoint = f"{collector.endpoint.replace('://', '://user:s3cret@')}?key=s3cret"
    traced(endpoint, request(), share=1.0)
    assert collector.headers[0]["Authorization"].startswith("Basic ")
    traced(endpoint, request(), share=1.0)
    collector.close()
    assert f"no traces reach {collector.endpoint.replace('://', '://***@')};" in caplog.text
    traced("http://user:s3cret@[nowhere/v1/traces", request(), share=1.0)
    assert "nowhere" in caplog.text
    assert "s3cret" not in caplog.text


def test_a_collector_that_is_busy_is_asked_again():
    collector = Collector(503, 503, 200)
    traced(collector.endpoint, request(), share=1.0)
    collector.close()
    assert (collector.num_asked, len(collector.spans)) == (3, 1)


def test_a_collector_that_never_answers_well_costs_no_longer_than_the_time_out(monkeypatch):
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TRACES_TIMEOUT", "0.2")
    with socket.create_server(("127.0.0.1", 0)) as silent:
        started_at = time.monotonic()
        traced(f"http://127.0.0.1:{silent.getsockname()[1]}/v1/traces", request(), share=1.0)
        assert 0.1 < time.monotonic() - started_at < 3


def test_the_environment_says_what_the_configuration_does_not(collector, monkeypatch):
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", collector.base)
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_HEADERS", "x-scope-orgid=tenant-7")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_COMPRESSION", "gzip")
    traced(None, request(), share=1.0)
    assert len(collector.spans) == 1
    assert collector.headers[0]["x-scope-orgid"] == "tenant-7"
    assert collector.headers[0]["Content-Encoding"] == "gzip"
    assert collector.headers[0]["Content-Type"] == "application/x-protobuf"


def test_the_configuration_goes_before_the_environment(collector, monkeypatch):
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "http://127.0.0.1:9/v1/traces")
    traced(collector.endpoint, request(), share=1.0)
    assert len(collector.spans) == 1


def test_what_is_off_is_not_even_imported():
    ask = "import sys; from fewshard_serve.http.middleware import AccessMiddleware; AccessMiddleware();"
    ask += "print('opentelemetry' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", ask], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


def test_without_the_section_nothing_is_traced():
    made = request(f"00-{TRACE}-{PARENT}-01")
    AccessMiddleware().trace(made, "classify", "ok")
    assert made.trace_id == ""
