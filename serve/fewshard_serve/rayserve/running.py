"""The applications of one server while it runs: their readiness, what the gateway knows of them, their drain.

`launch` deploys them and holds them as a `Running`.
"""

import asyncio
import http.client
import queue
import ssl
import sys
import time
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

from fewshard_serve.config import ServerConfig
from fewshard_serve.errors import StartError
from fewshard_serve.http.service import ModelEntry
from fewshard_serve.logs import write_line
from fewshard_serve.rayserve.deployment_plan import AppSpec, CascadeSpec, HostSpec
from fewshard_serve.rayserve.model_changes import ModelChange
from fewshard_serve.rayserve.signals import CallThread, LoopThread, StopRequest

POLL_S = 0.1
STATUS_S = 2.0
"""Seconds between reads of Serve's full status, which costs its controller more than a gateway call."""
CALL_TIMEOUT_S = 2.0
LISTEN_AGAIN_S = 0.5
START_TIMEOUT_S = 60.0
"""For the first call, which also makes Ray Serve discover the replicas."""
CUT_S = 0.5
"""Time to end every process, so that the server has ended when its time is up."""


class Running:
    """The applications of one server.

    apps: hosts and cascades.
    handles: the handles of `apps`, in order, then the gateway's.
    server: where to reach it over HTTP; None if that may be another machine.
    token: lets the launcher ask whether a model is ready.
    """

    def __init__(
        self,
        apps: Sequence[AppSpec],
        handles: Sequence[Any],
        loop: LoopThread,
        server: ServerConfig | None,
        token: str,
    ) -> None:
        self.calls = CallThread()
        self.apps = apps
        *handles, self._gateway = handles
        self._handles = {app.app: handle for app, handle in zip(apps, handles, strict=True)}
        self._revision, self._unloaded = 0, list[str]()
        self._loop = loop
        self._server = server
        self._token = token
        self._reported: dict[str, str] = {}

    @property
    def stop_limit_s(self) -> float:
        """How long the server may take to end after a signal: the longest deadline, and a margin."""
        return max(app.drain_timeout_s for app in self.apps) - CUT_S

    def wait_until_ready(self, stop: StopRequest) -> bool:
        """Wait until every model answers. Return False if a stop is requested. Raises `StartError`.

        A host that needs more CPUs or GPUs than the cluster has is waited for, with a message.
        """
        look_again_at = 0.0
        while not (self._are_models_loaded() and self._is_reachable()):
            if time.monotonic() >= look_again_at:
                self._raise_if_deploying_failed()
                self._report_missing_resources()
                look_again_at = time.monotonic() + STATUS_S
            if stop.wait(POLL_S):
                return False
        return True

    def _report_missing_resources(self) -> None:
        for entry in self.index():
            if entry.state == "LOADING" and entry.reason not in ("loading", self._reported.get(entry.name)):
                self._reported[entry.name] = entry.reason
                write_line(f"fewshard: {entry.name}: {entry.reason}", sys.stderr)

    def meet_all(self) -> None:
        """Make Ray Serve discover every replica now. A drain needs that, and the controller may hang then."""
        self._broadcast(list(self._handles.values()), "name", START_TIMEOUT_S)

    def show(self, apps: Sequence[AppSpec], unloaded: Collection[str]) -> None:
        """Tell the gateway what runs from now on. If it does not answer, it hears it once it does."""
        from ray import serve

        from fewshard_serve.rayserve.deployment import DEPLOYMENT

        def handle_of(name: str) -> Any:
            return self._handles.get(name) or serve.get_deployment_handle(DEPLOYMENT, name)

        self._handles = {app.app: handle_of(app.app) for app in apps}
        self.apps, self._unloaded, self._revision = list(apps), sorted(unloaded), self._revision + 1
        with suppress(TimeoutError):
            self._loop.run(self._show(), START_TIMEOUT_S)

    async def _show(self) -> None:
        from fewshard_serve.rayserve.handles import ask_all

        shown = (self._revision, list(self.apps), self._unloaded)
        await ask_all(self._gateway, "show", *shown, timeout_s=START_TIMEOUT_S)

    @contextmanager
    def listening(self) -> Iterator["AskedChanges"]:
        """In the body, take the changes of models that requests ask the gateway for."""
        changes = AskedChanges(self._loop, self._gateway)
        listening = self._loop.start(self._listen(changes))
        try:
            yield changes
        finally:
            listening.cancel()

    async def _listen(self, changes: "AskedChanges") -> None:
        from fewshard_serve.rayserve.handles import ask_one

        while True:
            try:
                found = await ask_one(self._gateway, "next_changes", self._revision)
            except Exception:  # noqa: BLE001  the gateway is being replaced; Ray raises many kinds of errors
                await asyncio.sleep(LISTEN_AGAIN_S)
                continue
            if found is None:  # a new gateway knows only what there was at the start
                await self._show()
            else:
                changes.add(found)

    def drain(self) -> None:
        """Refuse new requests on all applications, then answer the accepted ones.

        The gateway drains before the cascades, and these before the hosts, because each one's open requests
        still need the next.
        """
        timeout_s = 2 * max(app.drain_timeout_s for app in self.apps)
        self._broadcast([*self._handles.values(), self._gateway], "begin_drain", CALL_TIMEOUT_S)
        self._broadcast([self._gateway], "finish_drain", timeout_s)
        for kind in (CascadeSpec, HostSpec):
            handles = [self._handles[app.app] for app in self.apps if isinstance(app, kind)]
            self._broadcast(handles, "finish_drain", timeout_s)

    def _broadcast(self, handles: Sequence[Any], method: str, timeout_s: float) -> None:
        from fewshard_serve.rayserve.handles import ask_all

        async def call_all() -> None:
            await asyncio.gather(*(ask_all(handle, method, timeout_s=timeout_s) for handle in handles))

        self._loop.run(call_all(), timeout_s + CALL_TIMEOUT_S)

    def _are_models_loaded(self) -> bool:
        index = self.index()
        failed = [f"  {entry.name}: {entry.reason}" for entry in index if entry.state == "UNAVAILABLE"]
        if failed:
            raise StartError("\n".join(["these models cannot be served:", *failed]))
        return bool(index) and all(entry.state == "READY" for entry in index)

    def index(self) -> list[ModelEntry]:
        """Return the state of every model; [] if the gateway does not answer. Raises `TimeoutError`."""
        from fewshard_serve.rayserve.handles import ask_all

        asking = ask_all(self._gateway, "index", timeout_s=CALL_TIMEOUT_S)
        answers = self._loop.run(asking, START_TIMEOUT_S)
        return answers[0] if answers else []

    def _raise_if_deploying_failed(self) -> None:
        from ray import serve

        try:
            applications = self.calls.run(serve.status, START_TIMEOUT_S).applications
        except TimeoutError:  # it is asked again
            return
        for name, app in applications.items():
            if app.status == "DEPLOY_FAILED":
                raise StartError(f"the application {name} cannot start: {app.message}")

    def _is_reachable(self) -> bool:
        """Return whether the proxy routes to every host. Routes appear shortly after hosts are ready."""
        if self._server is None:
            return True
        paths = ["/v2/health/ready", *(f"/v2/models/{app.models[0].name}/ready" for app in self.apps)]
        return all(_answers(self._server, path, self._token) for path in paths)


class AskedChanges:
    """The changes of models that requests have asked the gateway for, in their order."""

    def __init__(self, loop: LoopThread, gateway: Any) -> None:
        self._loop, self._gateway = loop, gateway
        self._waiting: queue.SimpleQueue[ModelChange] = queue.SimpleQueue()

    def add(self, changes: Sequence[ModelChange]) -> None:
        for change in changes:
            self._waiting.put(change)

    def take(self) -> list[ModelChange]:
        """Return those that have come since the last call."""
        return [self._waiting.get_nowait() for _ in range(self._waiting.qsize())]

    def finish(self, change: ModelChange, why_not: str) -> None:
        """Answer who has asked. `why_not`: "" if the change is made."""
        from fewshard_serve.rayserve.handles import ask_all

        answer = ask_all(self._gateway, "finish_change", change.number, why_not, timeout_s=CALL_TIMEOUT_S)
        with suppress(TimeoutError):
            self._loop.run(answer, START_TIMEOUT_S)


def _answers(server: ServerConfig, path: str, token: str) -> bool:
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(server.host, server.host)
    connection = http.client.HTTPConnection(host, server.port, timeout=CALL_TIMEOUT_S)
    if server.tls is not None:  # whoever listens there is this server, whatever name its certificate has
        unchecked = ssl._create_unverified_context()
        connection = http.client.HTTPSConnection(host, server.port, timeout=CALL_TIMEOUT_S, context=unchecked)
    try:
        connection.request("GET", path, headers={"Authorization": f"Bearer {token}"})
        return connection.getresponse().status == http.client.OK
    except OSError:
        return False
    finally:
        connection.close()
