"""Locust's users: HTTP and gRPC, each with a closed and an open loop.

Chosen by `locustfile` and `headless`. Importing this imports Locust, which monkey-patches the process.
"""

import time
from collections.abc import Iterator, Sequence
from typing import Any

import gevent
from gevent.pool import Pool
from locust import FastHttpUser, User

from fewshard_core.errors import FewshardError
from fewshard_loadtest.adapters import DIALECTS
from fewshard_loadtest.arrivals import Stage, poisson_arrivals, staged_arrivals
from fewshard_loadtest.grpcwire import INFER_METHOD
from fewshard_loadtest.measure import Plan
from fewshard_loadtest.protocols import PROTOCOLS, Request
from fewshard_loadtest.request_sampler import RequestSampler, deck_of

NETWORK_TIMEOUT_S = 30.0
MAX_IN_FLIGHT = 4096
PAUSE_AFTER_NO_ANSWER_S = 0.05
TAIL_S = 2.0


class LoadUser:
    """Base class of all users. `prepare` sets the class attributes before the test begins.

    `send` sends one request and returns whether any response arrived, successful or not. With `due_at`
    (`time.perf_counter` seconds), latency counts from that time.
    """

    deck: RequestSampler
    protocol: str = "classify"
    dialect: str = "fewshard"
    reads_labels: bool = False
    seed: int = 0
    rate_per_user: float = 1.0
    stages_per_user: tuple[Stage, ...] = ()
    _num_started: int = 0

    def on_start(self) -> None:
        """Number the users, so that each draws its own arrivals, reproducibly."""
        LoadUser._num_started += 1
        self.number = LoadUser._num_started

    def send(self, due_at: float | None = None) -> bool:
        raise NotImplementedError


class HttpLoadUser(LoadUser, FastHttpUser):
    """Sends with Locust's fast HTTP client; each user has its own pool of keep-alive connections."""

    abstract = True
    network_timeout = NETWORK_TIMEOUT_S
    connection_timeout = NETWORK_TIMEOUT_S

    def send(self, due_at: float | None = None) -> bool:
        request = self.deck.draw()
        context = about(request, due_at)
        with self.client.post(
            request.path,
            data=request.body,
            headers=request.headers,
            catch_response=True,
            context=context,
        ) as response:
            if due_at is not None:
                _count_from(due_at, response.request_meta)
            if response.status_code and response.status_code < 300:
                self._read(request, response, context)
            return bool(response.status_code)

    def _read(self, request: Request, response: Any, context: dict[str, Any]) -> None:
        if request.expected not in response.content:
            response.failure(f"the answer lacks {request.expected.decode()}")
            return
        if self.dialect != "fewshard" or not self.reads_labels:
            return
        try:
            label = PROTOCOLS[self.protocol].label(response.content, response.headers)
        except (ValueError, LookupError, TypeError) as error:
            response.failure(f"the answer names no label: {error!r}")
            return
        response.request_meta["context"]["label"] = label


class GrpcLoadUser(LoadUser, User):
    """Sends over gRPC to host:port. Every user has its own connection."""

    abstract = True

    def on_start(self) -> None:
        super().on_start()
        import grpc

        target = self.host.removeprefix("http://").removeprefix("grpc://")
        options = (("grpc.use_local_subchannel_pool", 1),)
        self._channel = grpc.insecure_channel(target, options=options)
        self._infer = self._channel.unary_unary(INFER_METHOD)

    def send(self, due_at: float | None = None) -> bool:
        import grpc

        request = self.deck.draw()
        error: Exception | None = None
        context = about(request, due_at)
        begun_at, begun = time.time(), time.perf_counter()
        body = b""
        try:
            body = self._infer(request.body, timeout=NETWORK_TIMEOUT_S)
            context["label"] = PROTOCOLS["grpc"].label(body, {})
        except grpc.RpcError as failure:
            error = _RpcFailure(f"{failure.code().name}: {failure.details()}")
        except (ValueError, LookupError) as failure:
            error = failure
        meta = {
            "request_type": "gRPC",
            "name": f"ModelInfer {request.model}",
            "start_time": begun_at,
            "response_time": 1000 * (time.perf_counter() - begun),
            "response_length": len(body),
            "exception": error,
            "context": context,
            "response": None,
        }
        if due_at is not None:
            _count_from(due_at, meta)
        self.environment.events.request.fire(**meta)
        return not (error and "UNAVAILABLE" in str(error))


class _RpcFailure(FewshardError):
    """A failed gRPC call."""


class ClosedLoop(LoadUser):
    """Sends the next request as soon as the last response has arrived."""

    def ask(self) -> None:
        """Send one request; pause briefly if the server did not respond."""
        if not self.send():
            gevent.sleep(PAUSE_AFTER_NO_ANSWER_S)


class OpenLoop(LoadUser):
    """Sends at times that do not depend on responses; each request has its own greenlet.

    Latency counts from the time a request was due. It therefore includes time spent waiting for the
    generator or for a connection: no coordinated omission.
    """

    concurrency = MAX_IN_FLIGHT

    def on_start(self) -> None:
        """Draw the schedule."""
        super().on_start()
        self._pool = Pool()
        seed = f"{self.seed}/{self.number}"
        stages = self.stages_per_user
        self._schedule: Iterator[float] = (
            staged_arrivals(stages, seed) if stages else poisson_arrivals(self.rate_per_user, seed)
        )
        self._begun_at = time.perf_counter()
        self._draw_next()

    def send_what_is_due(self) -> None:
        """Send one request in its own greenlet if one is due; at the start none may be."""
        if self.wait_time() == 0:
            self._pool.spawn(self.send, self._due_at)
            self._draw_next()

    def wait_time(self) -> float:
        """Seconds until the next request is due; 0 if the generator is late."""
        return max(self._due_at - time.perf_counter(), 0.0)

    def on_stop(self) -> None:
        """Wait for requests in flight; each ends by its network timeout at the latest."""
        self._pool.join()

    def _draw_next(self) -> None:
        """Set the next due time; after the last stage none is due."""
        self._due_at = self._begun_at + next(self._schedule, 1e9)


class HttpUser(ClosedLoop, HttpLoadUser):
    """Closed loop over HTTP: `/classify`, V2 JSON or V2 binary."""

    tasks = (ClosedLoop.ask,)


class PoissonUser(OpenLoop, HttpLoadUser):
    """Open loop over HTTP."""

    tasks = (OpenLoop.send_what_is_due,)


class GrpcUser(ClosedLoop, GrpcLoadUser):
    """Closed loop over gRPC."""

    tasks = (ClosedLoop.ask,)


class GrpcPoissonUser(OpenLoop, GrpcLoadUser):
    """Open loop over gRPC."""

    tasks = (OpenLoop.send_what_is_due,)


def about(request: Request, due_at: float | None) -> dict[str, Any]:
    """Sample fields of a request that is being sent now; read by `headless`."""
    lag_s = 0.0 if due_at is None else time.perf_counter() - due_at
    return {"item": request.item, "model": request.model, "lag_ms": 1000 * lag_s, "label": None}


def _count_from(due_at: float, meta: dict[str, Any]) -> None:
    """Move the start of a finished request back to the time it was due."""
    waited_s = time.perf_counter() - due_at
    meta["response_time"] = 1000 * waited_s
    meta["start_time"] = time.time() - waited_s


def prepare(plan: Plan, rate_per_user: float | None = None, reads_labels: bool = False) -> type[LoadUser]:
    """The user class for a plan, with its requests ready. Raises `ScenarioError` if the payload is missing.

    rate_per_user: by default the plan's rate, divided among its users.
    reads_labels: whether a response must name a label.
    """
    user = _user_class(plan)
    user.reads_labels = reads_labels
    user.deck = deck_of(plan)
    user.protocol, user.dialect, user.seed = plan.protocol, plan.dialect, plan.seed
    user.rate_per_user = (plan.rate or 1.0) / plan.num_users if rate_per_user is None else rate_per_user
    user.stages_per_user = _with_warmup(_shared(plan.stages, plan.num_users), plan.warmup_s)
    return user


def _user_class(plan: Plan) -> type[LoadUser]:
    if plan.protocol == "grpc":
        import grpc.experimental.gevent

        grpc.experimental.gevent.init_gevent()
        return GrpcPoissonUser if plan.is_open else GrpcUser
    assert plan.dialect in DIALECTS
    return PoissonUser if plan.is_open else HttpUser


def _shared(stages: Sequence[Stage], num_users: int) -> tuple[Stage, ...]:
    return tuple(Stage(stage.seconds, stage.rate / num_users) for stage in stages)


def _with_warmup(stages: tuple[Stage, ...], warmup_s: float) -> tuple[Stage, ...]:
    """Add the first stage's rate for the warm-up, and the last one's until measuring has surely ended."""
    if not stages:
        return ()
    before = (Stage(warmup_s, stages[0].rate),) if warmup_s else ()
    return (*before, *stages, Stage(TAIL_S, stages[-1].rate))
