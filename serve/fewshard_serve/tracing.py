"""OpenTelemetry spans of requests, off by default; the HTTP layer reports each request once it is answered.

Spans are made afterwards from times that are measured anyway, so that a request without a trace costs
nothing. They leave as OTLP over HTTP in its JSON form (https://opentelemetry.io/docs/specs/otlp), which
collectors take at port 4318.
"""

import logging
import random
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import httpx
from opentelemetry.context import Context
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.trace import SpanKind, StatusCode, get_current_span, set_span_in_context
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from fewshard_serve import __version__
from fewshard_serve.core import Timings

logger = logging.getLogger(__name__)

SEND_EVERY_MS = 1000
SEND_TIMEOUT_S = 5.0


@dataclass(frozen=True, slots=True)
class Traced:
    """One request: `traceparent` as its client sent it; `started_at` and `answered_at` by the monotonic
    clock, the latter when the model had answered; `timings` where it did."""

    model: str
    protocol: str
    outcome: str
    request_id: str
    traceparent: str | None
    started_at: float
    answered_at: float = 0.0
    timings: Timings | None = None


class Tracing:
    """Traces what a client has marked as sampled, and `share` of what comes without a trace."""

    def __init__(self, exporter: SpanExporter, share: float) -> None:
        resource = Resource.create({"service.name": "fewshard", "service.version": __version__})
        self._provider = TracerProvider(resource=resource)
        self._processor = BatchSpanProcessor(exporter, schedule_delay_millis=SEND_EVERY_MS)
        self._provider.add_span_processor(self._processor)
        self._tracer = self._provider.get_tracer("fewshard")
        self._share = share
        self._random = random.Random()

    def report(self, traced: Traced) -> str:
        """Make the spans of an answered request; its trace's id, "" where it is not traced."""
        parent = _parent(traced.traceparent)
        if not self._is_sampled(parent):
            return ""
        now, clock = time.time_ns(), time.monotonic()

        def at(moment: float) -> int:
            return now - int(1e9 * (clock - moment))

        span = self._tracer.start_span(
            f"{traced.protocol} {traced.model}",
            parent,
            SpanKind.SERVER,
            {
                "fewshard.model": traced.model,
                "fewshard.protocol": traced.protocol,
                "fewshard.outcome": traced.outcome,
                "fewshard.request_id": traced.request_id,
            },
            start_time=at(traced.started_at),
        )
        if traced.outcome != "ok":
            span.set_status(StatusCode.ERROR, traced.outcome)
        for name, start, end in _stages(traced):
            child = self._tracer.start_span(name, set_span_in_context(span), start_time=at(start))
            child.end(at(end))
        span.end(now)
        return f"{span.get_span_context().trace_id:032x}"

    def close(self) -> None:
        """Send what waits."""
        self._provider.shutdown()

    def _is_sampled(self, parent: Context | None) -> bool:
        if parent is None:
            return self._random.random() < self._share
        return get_current_span(parent).get_span_context().trace_flags.sampled


def _parent(traceparent: str | None) -> Context | None:
    """The client's span; None where it sent none that is valid."""
    if traceparent is None:
        return None
    context = TraceContextTextMapPropagator().extract({"traceparent": traceparent}, Context())
    return context if len(context) else None


def _stages(traced: Traced) -> list[tuple[str, float, float]]:
    """Name, begin and end of what the model did, one after the other up to its answer.

    The exchange between shards is many short pieces of the pass; they are shown as one at its end.
    """
    if traced.timings is None:
        return []
    end = traced.answered_at
    stages = []
    for name, seconds in (
        ("infer", traced.timings.infer_s),
        ("queue", traced.timings.queue_s),
        ("preprocess", traced.timings.preprocess_s),
    ):
        stages.append((name, end - seconds, end))
        end -= seconds
    if traced.timings.exchange_s:
        stages.insert(0, ("exchange", traced.answered_at - traced.timings.exchange_s, traced.answered_at))
    return stages[::-1]


class JsonExporter(SpanExporter):
    """Posts spans to a collector; those it does not take are dropped, and the log says so once."""

    def __init__(self, endpoint: str) -> None:
        self._endpoint = endpoint
        self._client = httpx.Client(timeout=SEND_TIMEOUT_S)
        self._has_failed = False

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        try:
            self._client.post(self._endpoint, json=otlp_body(spans)).raise_for_status()
        except httpx.HTTPError as error:
            if not self._has_failed:
                logger.warning("no traces reach %s: %s", self._endpoint, error)
            self._has_failed = True
            return SpanExportResult.FAILURE
        self._has_failed = False
        return SpanExportResult.SUCCESS

    def shutdown(self) -> None:
        self._client.close()


def otlp_body(spans: Sequence[ReadableSpan]) -> dict[str, Any]:
    """OTLP's `ExportTraceServiceRequest` as JSON; all spans are of one resource."""
    resource = {"attributes": _attributes(dict(spans[0].resource.attributes))}
    scope = {"name": "fewshard", "version": __version__}
    scope_spans = [{"scope": scope, "spans": [_span(span) for span in spans]}]
    return {"resourceSpans": [{"resource": resource, "scopeSpans": scope_spans}]}


def _span(span: ReadableSpan) -> dict[str, Any]:
    context = span.get_span_context()
    assert context is not None, "a span that has ended has a context"
    status = {} if span.status.is_ok else {"code": 2, "message": span.status.description or ""}
    return {
        "traceId": f"{context.trace_id:032x}",
        "spanId": f"{context.span_id:016x}",
        "parentSpanId": "" if span.parent is None else f"{span.parent.span_id:016x}",
        "name": span.name,
        "kind": 2 if span.kind is SpanKind.SERVER else 1,
        "startTimeUnixNano": str(span.start_time),
        "endTimeUnixNano": str(span.end_time),
        "attributes": _attributes(dict(span.attributes or {})),
        "status": status,
    }


def _attributes(values: dict[str, Any]) -> list[dict[str, Any]]:
    return [{"key": key, "value": {"stringValue": str(value)}} for key, value in values.items()]
