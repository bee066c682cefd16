"""Where our log lines go in a replica: to its real stderr, which Ray passes on, or straight to a file.

Python's garbage collector in a replica: what was imported and loaded is not looked at again.

By default every full collection walks through all objects of torch, transformers and Ray. They are rare
while requests come and go, but under overload thousands wait at once, outlive the young generations and
make full collections frequent: a third of the event loop's time went to them (docs/log.md).

Counts the HTTP requests inside an ASGI application, so that a drain can wait for the last byte.
"""

import asyncio
import gc
import logging
import os
import sys
import time
from collections.abc import Awaitable, Callable, MutableMapping
from pathlib import Path
from typing import Any, TextIO

from fewshard_serve.logs import ACCESS, LineHandler, LogSettings, formatter

RAY_LOGGING: dict[str, Any] = {"log_level": "ERROR", "enable_access_log": False}
"""Serve's own lines, in its files: a line a request costs more than the request's routing."""


def configure_logging(settings: LogSettings = LogSettings(), path: str = "") -> None:  # noqa: B008  it is frozen
    """Print warnings and errors of this package, once; other libraries' loggers are left as they are.

    They are appended to the file at `path`; where it is empty they go to standard error.
    """
    ACCESS.setLevel(logging.INFO if settings.requests else logging.WARNING)
    for name in ("fewshard_serve", "fewshard"):
        logger = logging.getLogger(name)
        if not logger.handlers:
            handler = LineHandler(_stream(path))
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


def _stream(path: str) -> TextIO | None:
    # Appending writes of one line each do not mix, whoever else writes there.
    try:
        return Path(path).open("a", encoding="utf-8", buffering=1) if path else sys.__stderr__
    except OSError:
        return sys.__stderr__


YOUNG_OBJECTS = 10_000
"""New objects between two collections; Python's own 700 are a handful of requests."""


def freeze_loaded() -> None:
    """Call once all is loaded. Objects keep being freed by their counts; only cycles among them stay."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(YOUNG_OBJECTS, *gc.get_threshold()[1:])


Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Scope]]
Send = Callable[[Scope], Awaitable[None]]
AsgiApp = Callable[[Scope, Receive, Send], Awaitable[None]]

POLL_S = 0.02


class CountedApp:
    """The application, with the number of requests that are not answered in full yet."""

    def __init__(self, app: AsgiApp) -> None:
        self._app = app
        self.num_active = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        self.num_active += 1
        try:
            await self._app(scope, receive, send)
        finally:
            self.num_active -= 1

    async def idle(self, timeout_s: float) -> bool:
        """Wait until no request is inside; False if time ran out."""
        give_up_at = time.monotonic() + timeout_s
        while self.num_active and time.monotonic() < give_up_at:
            await asyncio.sleep(POLL_S)
        return self.num_active == 0
