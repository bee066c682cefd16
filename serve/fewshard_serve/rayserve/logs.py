"""Where our log lines go in a replica: to its real stderr, which Ray passes on to the command's."""

import logging
import sys
import traceback
from typing import Any

FORMAT = "%(levelname)s %(name)s: %(message)s"

RAY_LOGGING: dict[str, Any] = {"log_level": "ERROR", "enable_access_log": False}
"""Serve's own lines, in its files: a line a request costs more than the request's routing."""


class _Formatter(logging.Formatter):
    def formatException(self, ei: Any) -> str:  # noqa: N802  the standard library's name
        # The library's own uses `print`, which Serve replaces in a replica by one that garbles it.
        return "".join(traceback.format_exception(*ei)).rstrip("\n")


def configure_logging() -> None:
    """Print warnings and errors of this package, once; other libraries' loggers are left as they are."""
    for name in ("fewshard_serve", "fewshard"):
        logger = logging.getLogger(name)
        if not logger.handlers:
            # Serve puts its own log file in the place of `sys.stderr`.
            handler = logging.StreamHandler(sys.__stderr__)
            handler.setFormatter(_Formatter(FORMAT))
            logger.addHandler(handler)
            logger.setLevel(logging.WARNING)
            logger.propagate = False
