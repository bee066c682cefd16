"""Calls through Ray Serve's handles that outlive a replica or two; used by hosts, gateway and launcher."""

import asyncio
import logging
import time
from typing import Any, Protocol

logger = logging.getLogger(__name__)


async def ask_all(handle: Any, method: str, *args: Any, timeout_s: float) -> list[Any]:
    """Call a method of every replica; the answers of those that gave one within `timeout_s`.

    No replica at all is no answer, not an error.
    """
    answers = await ask_each(handle, method, *args, timeout_s=timeout_s)
    return [answer for answer in answers if not _is_failure(method, answer)]


async def ask_each(handle: Any, method: str, *args: Any, timeout_s: float) -> list[Any]:
    """The same with an exception for each replica that gave no answer.

    Serve's own `results_async` waits for all of them: one that hangs would cost the answers of the others.
    """
    give_up_at = time.monotonic() + timeout_s
    try:
        response = handle.broadcast(method, *args)
        calls = await asyncio.wait_for(response._fetch_replica_results_async(), timeout_s)
    except Exception as error:  # noqa: BLE001  Ray has many errors for "nobody is there"
        logger.debug("nobody answered %s: %r", method, error)
        return []
    return await asyncio.gather(*(_answer(call, give_up_at - time.monotonic()) for call in calls))


async def _answer(call: Any, timeout_s: float) -> Any:
    try:
        return await asyncio.wait_for(call.get_async(), max(timeout_s, 0))
    except TimeoutError as error:
        call.cancel()
        return error
    except Exception as error:  # noqa: BLE001  whatever went wrong there is told to whoever asked
        return error


def _is_failure(method: str, answer: Any) -> bool:
    if isinstance(answer, Exception):
        logger.warning("one replica did not answer %s: %r", method, answer)
    return isinstance(answer, Exception)


async def ask_one(handle: Any, method: str, *args: Any) -> Any:
    """Call a method of one replica that Serve picks; cancels it there when the caller is cancelled here."""
    response = getattr(handle, method).remote(*args)
    try:
        return await response
    except asyncio.CancelledError:
        response.cancel()
        raise


class HostCalls(Protocol):
    """How hosts are reached, by the name of their application."""

    async def all(self, app: str, method: str, *args: Any, timeout_s: float) -> list[Any]:
        """The answers of those replicas that gave one in time."""

    async def each(self, app: str, method: str, *args: Any, timeout_s: float) -> list[Any]:
        """The same with an exception for each replica that gave no answer."""

    async def one(self, app: str, method: str, *args: Any) -> Any:
        """The answer of one replica; raises whatever went wrong on the way."""


class HandleCalls:
    """Reaches hosts by Serve's handles, one kept for each application."""

    def __init__(self, deployment: str) -> None:
        self._deployment = deployment
        self._handles: dict[str, Any] = {}

    async def all(self, app: str, method: str, *args: Any, timeout_s: float) -> list[Any]:
        return await ask_all(self._handle(app), method, *args, timeout_s=timeout_s)

    async def each(self, app: str, method: str, *args: Any, timeout_s: float) -> list[Any]:
        return await ask_each(self._handle(app), method, *args, timeout_s=timeout_s)

    async def one(self, app: str, method: str, *args: Any) -> Any:
        return await ask_one(self._handle(app), method, *args)

    def _handle(self, app: str) -> Any:
        from ray import serve

        if app not in self._handles:
            self._handles[app] = serve.get_deployment_handle(self._deployment, app)
        return self._handles[app]
