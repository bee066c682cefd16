"""Calls through Ray Serve handles that tolerate dead replicas; used by hosts, gateway and launcher."""

import asyncio
import logging
import time
from typing import Any, Protocol

import grpc

from fewshard_serve.errors import InternalError, TooLarge

logger = logging.getLogger(__name__)

INNER_MESSAGE = "RAY_SERVE_REPLICA_GRPC_MAX_MESSAGE_LENGTH"
"""The variable that limits the bytes of one message between replicas."""
WIDEST_MESSAGE = 2**31 - 1
"""The most that gRPC can be told. What a request may hold is limited at the doors alone."""


async def ask_all(handle: Any, method: str, *args: Any, timeout_s: float) -> list[Any]:
    """Call a method on every replica. Return the answers that arrive within `timeout_s` seconds.

    No replica at all gives an empty list, not an error.
    """
    answers = await ask_each(handle, method, *args, timeout_s=timeout_s)
    return [answer for answer in answers if not _is_failure(method, answer)]


async def ask_each(handle: Any, method: str, *args: Any, timeout_s: float) -> list[Any]:
    """Call a method on every replica. Return an answer or an exception for each.

    Serve's own `results_async` waits for all replicas, so one that hangs would cost the others' answers.
    """
    give_up_at = time.monotonic() + timeout_s
    try:
        response = handle.broadcast(method, *args)
        calls = await asyncio.wait_for(response._fetch_replica_results_async(), timeout_s)
    except Exception as error:  # noqa: BLE001  Ray raises many kinds of errors if no replica is there
        logger.debug("nobody answered %s: %r", method, error)
        return []
    return await asyncio.gather(*(_answer(call, give_up_at - time.monotonic()) for call in calls))


async def _answer(call: Any, timeout_s: float) -> Any:
    try:
        return await asyncio.wait_for(call.get_async(), max(timeout_s, 0))
    except TimeoutError as error:
        call.cancel()
        return error
    except Exception as error:  # noqa: BLE001  every error is returned to the caller
        return error


def _is_failure(method: str, answer: Any) -> bool:
    if isinstance(answer, Exception):
        logger.warning("one replica did not answer %s: %r", method, answer)
    return isinstance(answer, Exception)


async def ask_one(handle: Any, method: str, *args: Any) -> Any:
    """Call a method on one replica that Serve picks. Cancelling this call cancels it there too.

    Raises `TooLarge` if Ray Serve does not carry so much between processes, `InternalError` if the replica
    failed, and any other error if no replica answered.
    """
    response = getattr(handle, method).remote(*args)
    try:
        return await response
    except asyncio.CancelledError:
        response.cancel()
        raise
    except grpc.aio.AioRpcError as error:
        if "larger than max" not in (error.details() or ""):
            raise
        raise TooLarge(
            f"the request or its answer does not fit between two processes of the server: {error.details()}; "
            f"send less at once, or start Ray with {INNER_MESSAGE}={WIDEST_MESSAGE}"
        ) from error
    except Exception as error:
        from ray.exceptions import RayTaskError

        if isinstance(error, RayTaskError):  # raised by the replica's own code
            logger.exception("%s failed on a replica", method)
            raise InternalError("the model's replica failed; the server's log has the reason") from error
        raise


class HostCalls(Protocol):
    """Calls to hosts, addressed by the name of their application."""

    async def all(self, app: str, method: str, *args: Any, timeout_s: float) -> list[Any]:
        """Return the answers of the replicas that answered in time."""

    async def each(self, app: str, method: str, *args: Any, timeout_s: float) -> list[Any]:
        """Return an answer or an exception for each replica."""

    async def one(self, app: str, method: str, *args: Any) -> Any:
        """Return one replica's answer. Raises any error of the call."""


class HandleCalls:
    """Calls hosts through Serve's handles and keeps one handle for each application."""

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
