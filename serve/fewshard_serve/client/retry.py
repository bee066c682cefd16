"""Decides when a call is retried, and after how long. A prediction changes nothing, so a retry is safe.

`exchange` is a generator that yields the next step and receives its result. It uses no network, so that the
blocking and the asynchronous client share it.
"""

import random
import time
from collections.abc import Callable, Generator
from dataclasses import dataclass

import httpx

from fewshard_serve.client.messages import ClientError

RETRIED_STATUSES = frozenset({429, 502, 503, 504})


@dataclass(frozen=True, slots=True)
class Retry:
    """When and how often a call is retried.

    max_retries: attempts after the first.
    first_wait_s, max_wait_s: the wait doubles from the first to the longest, in seconds. A Retry-After header
        from the server takes precedence.
    on_connect: whether to retry if the connection fails.
    """

    max_retries: int = 4
    first_wait_s: float = 0.1
    max_wait_s: float = 5.0
    on_connect: bool = True


@dataclass(frozen=True, slots=True)
class Send:
    """Send the request now, with a timeout of `timeout_s` seconds."""

    timeout_s: float


@dataclass(frozen=True, slots=True)
class Sleep:
    seconds: float


Step = Send | Sleep
Result = httpx.Response | httpx.HTTPError | httpx.InvalidURL | None


def exchange(
    url: str,
    timeout_s: float,
    retry: Retry,
    clock: Callable[[], float] = time.monotonic,
    jitter: Callable[[], float] = random.random,
) -> Generator[Step, Result, httpx.Response]:
    """Yield steps and return the last response. The caller sends back the result of each `Send`.

    Raises `ClientError` if no response came. A wait that would pass the deadline is skipped: the last result
    then counts.
    """
    deadline = clock() + timeout_s
    for attempt in range(retry.max_retries + 1):
        result = yield Send(max(deadline - clock(), 0.001))
        wait_s = _wait_s(result, attempt, retry, jitter)
        if wait_s is None or attempt == retry.max_retries or clock() + wait_s >= deadline:
            break
        yield Sleep(wait_s)
    if isinstance(result, httpx.Response):
        return result
    raise _explained(url, timeout_s, result) from None


def _wait_s(result: Result, attempt: int, retry: Retry, jitter: Callable[[], float]) -> float | None:
    """Seconds until the next attempt; None if a retry makes no sense."""
    doubled: float = min(retry.first_wait_s * 2**attempt, retry.max_wait_s)
    if isinstance(result, httpx.Response):
        if not _is_worth_it(result):
            return None
        asked_s = _retry_after_s(result)
        # Add jitter, so that clients refused together do not retry together.
        return doubled * (0.5 + jitter() / 2) if asked_s is None else asked_s * (1 + jitter() / 10)
    if isinstance(result, httpx.TimeoutException | httpx.UnsupportedProtocol | httpx.InvalidURL):
        return None
    if isinstance(result, httpx.ConnectError) and not retry.on_connect:
        return None
    return doubled * (0.5 + jitter() / 2)


def _is_worth_it(response: httpx.Response) -> bool:
    # The proxy answers 500 without JSON if the replica died during the request: retry. A 500 with JSON is
    # the server's own answer: do not retry.
    is_a_proxys = response.status_code == 500 and "json" not in response.headers.get("content-type", "")
    return response.status_code in RETRIED_STATUSES or is_a_proxys


def _retry_after_s(response: httpx.Response) -> float | None:
    value: str = response.headers.get("retry-after", "")
    if value.isascii() and value.isdigit() and len(value) < 8:
        return float(value)
    return None


def _explained(url: str, timeout_s: float, error: Result) -> ClientError:
    if isinstance(error, httpx.TimeoutException):
        return ClientError(f"{url} did not answer within {timeout_s:g} s")
    return ClientError(
        f"no server answers at {url} ({error}); start one with `fewshard serve`, or pass --url"
    )
