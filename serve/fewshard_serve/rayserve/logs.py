"""Where our log lines go in a replica: to its real stderr, which Ray passes on, or straight to a file."""

import logging
import os
import sys
from pathlib import Path
from typing import IO, Any

from fewshard_serve.logs import ACCESS, LogSettings, formatter

RAY_LOGGING: dict[str, Any] = {"log_level": "ERROR", "enable_access_log": False}
"""Serve's own lines, in its files: a line a request costs more than the request's routing."""


def configure_logging(settings: LogSettings = LogSettings()) -> None:  # noqa: B008  it is frozen
    """Print warnings and errors of this package, once; other libraries' loggers are left as they are."""
    ACCESS.setLevel(logging.INFO if settings.requests else logging.WARNING)
    for name in ("fewshard_serve", "fewshard"):
        logger = logging.getLogger(name)
        if not logger.handlers:
            handler = logging.StreamHandler(_stream(settings.path))
            handler.setFormatter(formatter(settings))
            logger.addHandler(handler)
            logger.setLevel(logging.WARNING)
            logger.propagate = False


def own_stderr() -> str:
    """A path by which other processes of this user can write to this one's stderr; "" where there is none.

    Ray passes lines on too, but puts a prefix before each and leaves out what looks alike.
    """
    path = f"/proc/{os.getpid()}/fd/2"
    try:
        with open(path, "ab"):
            return path
    except OSError:  # a socket, another system, or no permission
        return ""


def _stream(path: str) -> IO[str] | None:
    # Appending writes of one line each do not mix, whoever else writes there.
    try:
        return Path(path).open("a", encoding="utf-8", buffering=1) if path else sys.__stderr__
    except OSError:
        return sys.__stderr__
