"""The users Locust runs: three closed-loop ones, which wait for each answer, and an open-loop one.

`locustfile` and `headless` choose among them. Importing this imports Locust, which patches the whole process.
"""

import os
import random
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gevent
from gevent.pool import Pool
from locust import FastHttpUser, task

from fewshard_loadtest.arrivals import poisson_arrivals
from fewshard_loadtest.dialects import DIALECTS
from fewshard_loadtest.measure import Plan, Scenario
from fewshard_loadtest.payloads import Request, image_requests, infer_request, text_requests

NETWORK_TIMEOUT_S = 30.0
MAX_IN_FLIGHT = 4096


class ModelUser(FastHttpUser):
    """The base of all users. `prepare` fills the class attributes before the test begins."""

    abstract = True
    network_timeout = NETWORK_TIMEOUT_S
    connection_timeout = NETWORK_TIMEOUT_S
    requests: tuple[Request, ...] = ()
    seed: int = 0
    rate_per_user: float = 1.0
    _num_started: int = 0

    def on_start(self) -> None:
        """Number the users, so that each draws its own sequence, the same in every run."""
        ModelUser._num_started += 1
        self.number = ModelUser._num_started
        self.rng = random.Random(f"{self.seed}/{self.number}")

    def send(self, due_at: float | None = None) -> None:
        """Send one request. With `due_at` (`time.perf_counter` seconds) latency is counted from then."""
        request = self.rng.choice(self.requests)
        with self.client.post(
            request.path, data=request.body, headers=request.headers, catch_response=True
        ) as response:
            if due_at is not None:
                _count_from(due_at, response.request_meta)
            if (
                response.status_code
                and response.status_code < 300
                and request.expected not in response.content
            ):
                response.failure(f"the answer lacks {request.expected.decode()}")


class ClosedLoopUser(ModelUser):
    """Sends the next request as soon as the last is answered."""

    abstract = True

    @task
    def ask(self) -> None:
        """One request after the other, no pause."""
        self.send()


class ClassifyUser(ClosedLoopUser):
    """Texts to `/v2/models/<m>/classify`."""


class InferUser(ClosedLoopUser):
    """Texts to `/v2/models/<m>/infer` in JSON."""


class ImageUser(ClosedLoopUser):
    """Images to `/v2/models/<m>/infer` as a binary tensor."""


class PoissonUser(ModelUser):
    """Texts to `/classify` at times that do not depend on the answers, each from a greenlet of its own.

    Latency is counted from the time a request was due, so that a request which had to wait for the generator
    or for a connection shows its wait: no coordinated omission.
    """

    concurrency = MAX_IN_FLIGHT

    def on_start(self) -> None:
        """Draw the schedule and wait for its first request."""
        super().on_start()
        self._pool = Pool()
        self._schedule: Iterator[float] = poisson_arrivals(self.rate_per_user, f"{self.seed}/{self.number}")
        self._begun_at = time.perf_counter()
        self._draw_next()
        gevent.sleep(self.wait_time())

    @task
    def send_what_is_due(self) -> None:
        """Send one request and leave it to its greenlet."""
        self._pool.spawn(self.send, self._due_at)
        self._draw_next()

    def wait_time(self) -> float:
        """Seconds until the next request is due; 0 when the generator is late."""
        return max(self._due_at - time.perf_counter(), 0.0)

    def on_stop(self) -> None:
        """Wait for what is in flight; every request ends by its network time-out at the latest."""
        self._pool.join()

    def _draw_next(self) -> None:
        self._due_at = self._begun_at + next(self._schedule)


def _count_from(due_at: float, meta: dict[str, Any]) -> None:
    """Move the start of a finished request back to the time it was due."""
    waited_s = time.perf_counter() - due_at
    meta["response_time"] = 1000 * waited_s
    meta["start_time"] = time.time() - waited_s


USERS: dict[Scenario, type[ModelUser]] = {
    "classify": ClassifyUser,
    "infer": InferUser,
    "image": ImageUser,
    "open-loop": PoissonUser,
}


def prepare(plan: Plan, rate_per_user: float | None = None) -> type[ModelUser]:
    """The user class of a plan's scenario, with its requests made. Reads SST-2 where FEWSHARD_DATA is set.

    `rate_per_user` None: the plan's rate, shared by its users.
    """
    user = USERS[plan.scenario]
    user.requests = tuple(_requests(plan))
    user.seed = plan.seed
    user.rate_per_user = plan.rate / plan.num_users if rate_per_user is None else rate_per_user
    return user


def _requests(plan: Plan) -> list[Request]:
    if plan.scenario == "image":
        return image_requests(plan.model, plan.num_items, plan.seed)
    make = infer_request if plan.scenario == "infer" else DIALECTS[plan.dialect].request
    data = os.environ.get("FEWSHARD_DATA")
    return text_requests(make, plan.model, plan.num_items, plan.seed, Path(data) if data else None)
