"""The header `traceparent`: which values name a client's span, compared with OpenTelemetry's own reader."""

import pytest
from opentelemetry.context import Context
from opentelemetry.trace import get_current_span
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from fewshard_serve.tracecontext import TraceParent, read_traceparent

TRACE = "0af7651916cd43dd8448eb211c80319c"
SPAN = "00f067aa0ba902b7"


@pytest.mark.parametrize(
    ("header", "is_sampled"),
    [
        (f"00-{TRACE}-{SPAN}-01", True),
        (f"00-{TRACE}-{SPAN}-00", False),
        (f"00-{TRACE}-{SPAN}-02", False),
        (f"00-{TRACE}-{SPAN}-03", True),
        (f"cc-{TRACE}-{SPAN}-01", True),
        (f"cc-{TRACE}-{SPAN}-01-what-comes-later", True),
        (f"00-{TRACE}-{SPAN}-01-what-comes-later", None),
        (f"ff-{TRACE}-{SPAN}-01", None),
        (f"00-{'0' * 32}-{SPAN}-01", None),
        (f"00-{TRACE}-{'0' * 16}-01", None),
        (f"00-{TRACE.upper()}-{SPAN}-01", None),
        (f"00-{TRACE}-{SPAN}", None),
        ("nonsense", None),
        ("", None),
        (None, None),
    ],
)
def test_a_clients_span_is_read(header, is_sampled):
    expected = None if is_sampled is None else TraceParent(TRACE, SPAN, is_sampled)
    assert read_traceparent(header) == expected == theirs(header)


def theirs(header):
    carrier = {} if header is None else {"traceparent": header}
    found = get_current_span(TraceContextTextMapPropagator().extract(carrier, Context())).get_span_context()
    if not found.is_valid:
        return None
    return TraceParent(f"{found.trace_id:032x}", f"{found.span_id:016x}", found.trace_flags.sampled)
