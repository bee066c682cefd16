"""Prepares a replica's process: logging, the garbage collector, and a count of HTTP requests for drains.

The Ray Serve deployments `deployment` and `gateway` and the actors of `shard_actors` call it.

Garbage collection: by default a full collection walks all objects of torch, transformers and Ray. Full
    collections are rare under normal load. Under overload thousands of requests wait at once and outlive the
    young generations, so full collections become frequent: they took a third of the event loop's time
    (docs/log.md). `freeze_loaded` excludes everything that was imported and loaded before it.
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
"""Ray Serve's own log files hold errors only: one access line a request costs more than routing it."""


def configure_logging(settings: LogSettings = LogSettings(), path: str = "") -> None:  # noqa: B008  it is frozen
    """Print warnings and errors of this package. Repeated calls do nothing; other libraries' loggers stay as
    they are.

    Lines are appended to the file at `path`, or written to standard error if `path` is empty.
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


def print_to(path: str) -> None:
    """Print to the file at `path` from now on, also from C and from processes that are started later.

    Ray directs what an actor prints to a file of its own. "" leaves it there.
    """
    if not path:
        return
    try:
        with open(path, "ab") as file:
            os.dup2(file.fileno(), 1)
            os.dup2(file.fileno(), 2)
    except OSError:  # the server has ended
        return


def own_stderr() -> str:
    """Return a path by which this user's other processes can write to our stderr, or "" if there is none.

    Ray forwards the lines of its workers too, but prefixes each one and drops lines that look alike.
    """
    path = f"/proc/{os.getpid()}/fd/2"
    try:
        with open(path, "ab"):
            return path
    except OSError:  # stderr is a socket, the system has no /proc, or permission is denied
        return ""


def _stream(path: str) -> TextIO | None:
    # Appending one line a write keeps lines whole when several processes write to the same file.
    try:
        return Path(path).open("a", encoding="utf-8", buffering=1) if path else sys.__stderr__
    except OSError:
        return sys.__stderr__


YOUNG_OBJECTS = 10_000
"""New objects between two young collections. Python's default of 700 is a handful of requests."""


def freeze_loaded() -> None:
    """Exclude all objects that exist now from garbage collection; call it once everything is loaded.

    Reference counting still frees these objects. Only reference cycles among them are never freed.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(YOUNG_OBJECTS, *gc.get_threshold()[1:])


Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Scope]]
Send = Callable[[Scope], Awaitable[None]]
AsgiApp = Callable[[Scope, Receive, Send], Awaitable[None]]

POLL_S = 0.02


class CountedApp:
    """An ASGI application with a count of the HTTP requests whose answers are not complete."""

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
        """Wait until no request is active. Return False on time-out."""
        give_up_at = time.monotonic() + timeout_s
        while self.num_active and time.monotonic() < give_up_at:
            await asyncio.sleep(POLL_S)
        return self.num_active == 0
