"""Formats log lines as text or as JSON, with the id of their request; `rayserve` sets up the handlers."""

import io
import json
import logging
import os
import stat
import sys
import time
import traceback
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, Literal, TextIO

from fewshard_core.urls import masked
from fewshard_serve.settings import NO_OTHER_KEYS

TEXT_FORMAT = "%(levelname)s %(name)s: %(message)s"

REQUEST: ContextVar[dict[str, str]] = ContextVar("request")
"""`request_id` and, if the client sent a trace, `trace_id` of the current request."""

ACCESS = logging.getLogger("fewshard.access")
"""Access logs: one line per request, with the fields of `extra["fields"]`."""


@dataclass(frozen=True, slots=True)
class LogSettings:
    """What is written down, and how."""

    __pydantic_config__ = NO_OTHER_KEYS

    format: Literal["text", "json"] = "text"
    requests: bool = False
    """Whether every request is logged."""


class TextFormatter(logging.Formatter):
    """Plain lines, followed by the request's id."""

    def __init__(self) -> None:
        super().__init__(TEXT_FORMAT)

    def format(self, record: logging.LogRecord) -> str:
        line = super().format(record)
        request_id = REQUEST.get({}).get("request_id")
        return line if request_id is None else f"{line} [{request_id}]"

    def formatException(self, ei: Any) -> str:  # noqa: N802  the standard library's name
        # The standard implementation uses `print`, and Ray Serve's replacement of it garbles tracebacks.
        return "".join(traceback.format_exception(*ei)).rstrip("\n")


class JsonFormatter(logging.Formatter):
    """One JSON object per line: time (UTC), level, logger, message, the request's ids, fields, traceback."""

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
    """The formatter for these settings."""
    return JsonFormatter() if settings.format == "json" else TextFormatter()


def write_line(line: str, stream: TextIO | None = None) -> None:
    """Write a line with its line end to `stream` (None: standard output) in one system call.

    The launcher and all replicas share the streams. If Python is unbuffered, `print` writes text and line end
    separately, so that a line of another process may come between. The passwords of URLs are hidden. Raises
    `OSError` if the write fails.
    """
    line = masked(line)
    out = sys.stdout if stream is None else stream
    out.flush()
    try:
        descriptor = out.fileno()
    except (OSError, ValueError):  # in memory, as in a test
        out.write(f"{line}\n")
        return
    rest = f"{line}\n".encode(out.encoding or "utf-8", "backslashreplace")
    while rest:  # more than once only if the reader is slow and the line does not fit the pipe's buffer
        rest = rest[os.write(descriptor, rest) :]


def keep_lines_whole() -> None:
    """Make every `print` of this process, also in libraries, write its line in one piece, after all others.

    A shell opens the file of `> FILE` so that this process writes where its own last line ended, over what
    other processes have appended meanwhile.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(line_buffering=True, write_through=False)
            _append(stream)


def _append(stream: TextIO) -> None:
    try:
        descriptor = stream.fileno()
        if stat.S_ISREG(os.fstat(descriptor).st_mode):
            import fcntl  # not everywhere, while other commands also run elsewhere

            flags = fcntl.fcntl(descriptor, fcntl.F_GETFL)
            fcntl.fcntl(descriptor, fcntl.F_SETFL, flags | os.O_APPEND)
    except (OSError, ValueError, ImportError):  # in memory, as in a test
        return


class LineHandler(logging.StreamHandler[TextIO]):
    """Writes each record in one system call."""

    def emit(self, record: logging.LogRecord) -> None:
        try:
            write_line(self.format(record), self.stream)
        except Exception:  # noqa: BLE001  as every handler of the standard library does
            self.handleError(record)
