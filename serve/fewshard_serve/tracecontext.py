"""Reads the header `traceparent` of W3C Trace Context, for log lines and spans."""

import re
from dataclasses import dataclass

_PATTERN = re.compile(r"([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(-.*)?")
_SAMPLED = 1


@dataclass(frozen=True, slots=True)
class TraceParent:
    """The span of a client.

    trace_id: 32 hexadecimal digits.
    span_id: 16 hexadecimal digits.
    is_sampled: whether the client records this trace.
    """

    trace_id: str
    span_id: str
    is_sampled: bool


def read_traceparent(header: str | None) -> TraceParent | None:
    """The client's span; None if the header is missing or invalid. Fields of later versions are ignored."""
    match = _PATTERN.fullmatch(header) if header else None
    if match is None:
        return None
    version, trace_id, span_id, flags, rest = match.groups()
    is_known = version != "ff" and not (version == "00" and rest)
    if not is_known or not trace_id.strip("0") or not span_id.strip("0"):
        return None
    return TraceParent(trace_id, span_id, bool(int(flags, 16) & _SAMPLED))
