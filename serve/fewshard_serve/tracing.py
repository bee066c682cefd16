"""OpenTelemetry spans of requests, off by default; the HTTP layer reports each request once it is answered.

Spans are created afterwards from times that are measured anyway, so that a request without a trace costs
nothing. They are sent as OTLP over HTTP (https://opentelemetry.io/docs/specs/otlp), by convention to port
4318 of a collector.
"""

import logging
import os
import random
import time
from collections.abc import Sequence
from dataclasses import dataclass

from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.environment_variables import (
    OTEL_EXPORTER_OTLP_TIMEOUT,
    OTEL_EXPORTER_OTLP_TRACES_TIMEOUT,
)
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.trace import (
    NonRecordingSpan,
    SpanContext,
    SpanKind,
    StatusCode,
    TraceFlags,
    set_span_in_context,
)

from fewshard_core.urls import masked
from fewshard_serve import __version__
from fewshard_serve.core import Timings
from fewshard_serve.tracecontext import TraceParent

logger = logging.getLogger(__name__)
_exporter_logger = logging.getLogger(OTLPSpanExporter.__module__)

SEND_EVERY_MS = 1000
SEND_TIMEOUT_S = 5.0


@dataclass(frozen=True, slots=True)
class Traced:
    """One answered request.

    outcome: "ok" or the error's code.
    parent: the client's span; None if it sent no valid one.
    started_at, answered_at: seconds of the monotonic clock; `answered_at` is 0 if the model did not answer.
    timings: the times of the model's stages; None if the model did not answer.
    """

    model: str
    protocol: str
    outcome: str
    request_id: str
    parent: TraceParent | None
    started_at: float
    answered_at: float = 0.0
    timings: Timings | None = None


class Tracing:
    """Traces requests that the client has marked as sampled, and a `share` of those without a trace."""

    def __init__(self, exporter: SpanExporter, share: float) -> None:
        resource = Resource.create({"service.name": "fewshard", "service.version": __version__})
        self._provider = TracerProvider(resource=resource)
        self._processor = BatchSpanProcessor(exporter, schedule_delay_millis=SEND_EVERY_MS)
        self._provider.add_span_processor(self._processor)
        self._tracer = self._provider.get_tracer("fewshard")
        self._share = share
        self._random = random.Random()

    def report(self, traced: Traced) -> str:
        """Create the spans of an answered request. Return its trace id, or "" if it is not traced."""
        if not self._is_sampled(traced.parent):
            return ""
        now, clock = time.time_ns(), time.monotonic()

        def at(moment: float) -> int:
            return now - int(1e9 * (clock - moment))

        span = self._tracer.start_span(
            f"{traced.protocol} {traced.model}",
            _context(traced.parent),
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
        """Send the remaining spans and shut down."""
        self._provider.shutdown()

    def _is_sampled(self, parent: TraceParent | None) -> bool:
        return self._random.random() < self._share if parent is None else parent.is_sampled


def _context(parent: TraceParent | None) -> Context:
    """The context in which the client's span is the parent; without a parent, a new trace begins."""
    if parent is None:
        return Context()
    ids = int(parent.trace_id, 16), int(parent.span_id, 16)
    span = SpanContext(*ids, is_remote=True, trace_flags=TraceFlags(parent.is_sampled))
    return set_span_in_context(NonRecordingSpan(span), Context())


def _stages(traced: Traced) -> list[tuple[str, float, float]]:
    """The name, start and end of each of the model's stages, in order; the last one ends with the answer.

    The exchange between shards consists of many short parts of the pass. They are shown as one at its end.
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


class OtlpExporter(OTLPSpanExporter):
    """OpenTelemetry's own exporter, which sends protobuf over HTTP and retries.

    endpoint: the collector's URL; None takes it from the environment.

    The variables OTEL_EXPORTER_OTLP_* also set headers, compression, certificates and the timeout. Spans that
    cannot be sent are dropped. This is logged once, and again only after a successful export.
    """

    def __init__(self, endpoint: str | None) -> None:
        super().__init__(endpoint, timeout=_timeout_s())
        self._has_failed = False
        _exporter_logger.addFilter(self._is_first_failure)

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        """Send spans, in the thread of the span processor. It takes no longer than the timeout."""
        result = super().export(spans)
        has_failed = result is not SpanExportResult.SUCCESS
        if has_failed and not self._has_failed:
            where = masked(self._endpoint).partition("?")[0]
            logger.warning("no traces reach %s; nothing more is said until they do", where)
        self._has_failed = has_failed
        return result

    def shutdown(self) -> None:
        """Close the connection. A pending retry is cancelled."""
        super().shutdown()
        _exporter_logger.removeFilter(self._is_first_failure)

    def _is_first_failure(self, record: logging.LogRecord) -> bool:
        # Its records may repeat the URL, and go to no handler of ours.
        record.msg, record.args = masked(record.getMessage()), ()
        return not self._has_failed


def _timeout_s() -> float | None:
    """Our default timeout in seconds; None if the environment sets one."""
    variables = (OTEL_EXPORTER_OTLP_TRACES_TIMEOUT, OTEL_EXPORTER_OTLP_TIMEOUT)
    return None if any(map(os.environ.get, variables)) else SEND_TIMEOUT_S
