"""Log lines as text or as JSON, each with the request it belongs to; `rayserve.logs` puts them somewhere."""

import io
import json
import logging
import os
import sys
import time
import traceback
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, Literal, TextIO

from fewshard_serve.settings import NO_OTHER_KEYS

TEXT_FORMAT = "%(levelname)s %(name)s: %(message)s"

REQUEST: ContextVar[dict[str, str]] = ContextVar("request")
"""`request_id` and, where the client sent a trace, `trace_id` of the request that is being answered."""

ACCESS = logging.getLogger("fewshard.access")
"""One line a request, with the fields of `extra["fields"]`."""


@dataclass(frozen=True, slots=True)
class LogSettings:
    """What is written down, and how."""

    __pydantic_config__ = NO_OTHER_KEYS

    format: Literal["text", "json"] = "text"
    requests: bool = False
    """Whether every request gets a line."""


class TextFormatter(logging.Formatter):
    """Lines for people."""

    def __init__(self) -> None:
        super().__init__(TEXT_FORMAT)

    def format(self, record: logging.LogRecord) -> str:
        line = super().format(record)
        request_id = REQUEST.get({}).get("request_id")
        return line if request_id is None else f"{line} [{request_id}]"

    def formatException(self, ei: Any) -> str:  # noqa: N802  the standard library's name
        # The library's own uses `print`, which Serve replaces in a replica by one that garbles it.
        return "".join(traceback.format_exception(*ei)).rstrip("\n")


class JsonFormatter(logging.Formatter):
    """One JSON object a line: time (UTC), level, logger, message, the request's ids, fields, traceback."""

    def format(self, record: logging.LogRecord) -> str:
        at = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        line: dict[str, Any] = {
            "time": f"{at}.{int(record.msecs):03d}Z",
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
            **REQUEST.get({}),
            **getattr(record, "fields", {}),
        }
        if record.exc_info:
            line["traceback"] = "".join(traceback.format_exception(*record.exc_info)).rstrip("\n")
        return json.dumps(line, ensure_ascii=False, default=str)


def formatter(settings: LogSettings) -> logging.Formatter:
    """The formatter a configuration asks for."""
    return JsonFormatter() if settings.format == "json" else TextFormatter()


def write_line(line: str, stream: TextIO | None = None) -> None:
    """Write a line and its end to `stream` in one system call; None: standard output.

    The launcher and all replicas share the streams. `print` writes the text and the line end apart where
    Python is unbuffered, and a line of another process comes between. Raises `OSError` as a write does.
    """
    out = sys.stdout if stream is None else stream
    out.flush()
    try:
        descriptor = out.fileno()
    except (OSError, ValueError):  # in memory, as in a test
        out.write(f"{line}\n")
        return
    rest = f"{line}\n".encode(out.encoding or "utf-8", "backslashreplace")
    while rest:  # more than once only where the reader is slow and the line is longer than a pipe has room
        rest = rest[os.write(descriptor, rest) :]


def keep_lines_whole() -> None:
    """Make every `print` of this process write its line at once, those of libraries too."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(line_buffering=True, write_through=False)


class LineHandler(logging.StreamHandler[TextIO]):
    """Writes each record in one system call."""

    def emit(self, record: logging.LogRecord) -> None:
        try:
            write_line(self.format(record), self.stream)
        except Exception:  # noqa: BLE001  as every handler of the standard library does
            self.handleError(record)
