"""When a call is sent again, and after how long; without any network. A prediction changes nothing: it may be
repeated.

`exchange` is a generator that says what to do and is told what came of it, so that both clients share it.
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
    """`max_retries` beyond the first try. The server's Retry-After is waited for; without one, waits double.

    `on_connect`: whether a server that cannot be reached at all is tried again.
    """

    max_retries: int = 4
    first_wait_s: float = 0.1
    max_wait_s: float = 5.0
    on_connect: bool = True


@dataclass(frozen=True, slots=True)
class Send:
    """Send the request now; `timeout_s` is left."""

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
    """Yields steps, is sent a response or an error after each `Send`, and returns the last response.

    Raises `ClientError` where none came. A wait that would pass the deadline is not begun: what came then
    counts.
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
    """None where trying again makes no sense."""
    doubled: float = min(retry.first_wait_s * 2**attempt, retry.max_wait_s)
    if isinstance(result, httpx.Response):
        if not _is_worth_it(result):
            return None
        told_s = _retry_after_s(result)
        # A little apart, lest all that were refused together come back together.
        return doubled * (0.5 + jitter() / 2) if told_s is None else told_s * (1 + jitter() / 10)
    if isinstance(result, httpx.TimeoutException | httpx.UnsupportedProtocol | httpx.InvalidURL):
        return None
    if isinstance(result, httpx.ConnectError) and not retry.on_connect:
        return None
    return doubled * (0.5 + jitter() / 2)


def _is_worth_it(response: httpx.Response) -> bool:
    # A proxy in front says 500 where the replica died under it; the server itself says so in JSON, and means
    # it.
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
