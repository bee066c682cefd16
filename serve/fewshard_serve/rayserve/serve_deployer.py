"""Deploys applications to the running Ray Serve and says what ails them; `rolling_update` calls it."""

import re
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Any, Protocol

from fewshard_serve.errors import ServeError
from fewshard_serve.logs import write_line
from fewshard_serve.rayserve.deployment_plan import AppSpec
from fewshard_serve.rayserve.signals import CallThread

CALL_TIMEOUT_S = 10.0
"""How long Serve's controller may take to answer: a busy machine may need seconds."""
DEPLOY_TIMEOUT_S = 60.0
ILL = ("UNHEALTHY", "DEPLOY_FAILED")
OWN_REASON = r"^fewshard_serve\.errors\.StartError: (.+)$"
"""What a replica says that cannot start, at the end of a traceback of Serve's."""
NOT_THERE = "NOT_STARTED"
"""The status of an application that Serve does not have."""
MUTE = "Ray Serve's controller does not answer"


class UpdateFailed(ServeError):
    """The new models do not run; the old ones continue."""

    code = "update_failed"


class Deployer(Protocol):
    """Deploys applications: `ServeDeployer` with Ray Serve, a plain object in tests."""

    def deploy(self, apps: Sequence[AppSpec]) -> None:
        """Start these applications, or to replace their replicas. Raises `UpdateFailed`."""

    def remove(self, names: Sequence[str]) -> None:
        """Start to end these applications, which answer what they have accepted. Raises `UpdateFailed`."""

    def state(self, app: str) -> tuple[str, str]:
        """Return Serve's status of the application, and the reason for it."""


class ServeDeployer:
    """Deploys to the running Ray Serve.

    calls: makes the calls, each of which waits for Serve's controller.
    fail: called with the reason where Ray cannot heal any more.
    """

    def __init__(self, calls: CallThread, fail: Callable[[str], None]) -> None:
        self._calls, self._fail = calls, fail
        self._reported: dict[str, str] = {}
        self._look: Future[tuple[dict[str, Any], bool]] | None = None
        self._looked_at = 0.0

    def deploy(self, apps: Sequence[AppSpec]) -> None:
        """Start these applications, or to replace their replicas, new ones first. Raises `UpdateFailed`.

        If Serve does not answer in time, it does so later, and before the next call.
        """
        from ray import serve

        from fewshard_serve.rayserve.deployment import host_application

        def run() -> None:
            serve.run_many(
                [serve.RunTarget(host_application(app), app.app, app.route_prefix) for app in apps],
                wait_for_ingress_deployment_creation=False,
                wait_for_applications_running=False,
            )

        self._make(run, "deploy it")

    def remove(self, names: Sequence[str]) -> None:
        """Start to end these applications, which answer what they have accepted. Raises `UpdateFailed`."""
        from ray import serve

        def run() -> None:
            for name in names:
                serve.delete(name, _blocking=False)

        self._make(run, f"remove {', '.join(names)}")

    def _make(self, call: Callable[[], None], what: str) -> None:
        try:
            self._calls.start(call).result(DEPLOY_TIMEOUT_S)
        except TimeoutError as error:
            raise UpdateFailed(f"{MUTE}; try again when it does") from error
        except Exception as error:
            raise UpdateFailed(f"Ray Serve cannot {what}: {error}") from error

    def state(self, app: str) -> tuple[str, str]:
        """Return the status of an application, and the reason for it."""
        from ray import serve

        try:
            return _state(self._calls.run(serve.status, CALL_TIMEOUT_S).applications.get(app))
        except Exception as error:  # noqa: BLE001  Ray raises many kinds of errors while its controller restarts
            return "NOT_KNOWN", f"{MUTE}: {error!r}"

    def tell_what_ails(self, apps: Sequence[str]) -> None:
        """Print a line for each unhealthy application, once for each reason. Returns at once.

        What it prints was found since the last call.
        """
        if self._look is None:
            self._look, self._looked_at = self._calls.start(_look), time.monotonic()
        elif self._look.done():
            look, self._look = self._look, None
            if look.exception() is None:
                self._tell("controller", "")
                self._tell_of(apps, *look.result())
        elif time.monotonic() - self._looked_at > CALL_TIMEOUT_S:
            self._tell("controller", f"{MUTE}; requests are answered, but nothing that fails is replaced")

    def _tell_of(self, apps: Sequence[str], found: dict[str, Any], is_node_alive: bool) -> None:
        if not is_node_alive:
            self._fail("Ray has given this machine up, because its raylet did not answer for too long")
        for app in apps:
            status, why = _state(found.get(app))
            self._tell(app, f"{app} is {status.lower()}: {why}" if status in ILL and why else "")

    def _tell(self, subject: str, line: str) -> None:
        if line and line != self._reported.get(subject):
            write_line(f"fewshard: {line}", sys.stderr)
        self._reported[subject] = line


def _look() -> tuple[dict[str, Any], bool]:
    """Return Serve's status of each application, and whether Ray still counts on this machine."""
    import ray
    from ray import serve

    own = ray.get_runtime_context().get_node_id()
    is_alive = all(node["Alive"] for node in ray.nodes() if node["NodeID"] == own)
    return serve.status().applications, is_alive


def _state(found: Any) -> tuple[str, str]:
    """Read Serve's `ApplicationStatusOverview`."""
    if found is None:
        return NOT_THERE, "there is no such application"
    messages = [found.message, *(one.message for one in found.deployments.values())]
    said = "; ".join(message for message in messages if message)
    own = re.findall(OWN_REASON, said, re.MULTILINE)
    return str(found.status.value), own[-1] if own else said
