"""Counts the HTTP requests inside an ASGI application, so that a drain can wait for the last byte."""

import asyncio
import time
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

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
