"""Applies a changed configuration while the server runs, without losing requests; called by `launch`.

A host that does not load its new models never takes over. One that loads them, but cannot answer with them,
is found in the minute after it has taken over, and replaced by its former version.
"""

import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

from fewshard_serve.config import FewshardConfig
from fewshard_serve.errors import ConfigError, ServeError
from fewshard_serve.http.service import ModelEntry
from fewshard_serve.logs import write_line
from fewshard_serve.rayserve.deployment_plan import HostSpec
from fewshard_serve.rayserve.signals import CallThread, StopRequest

POLL_S = 1.0
UPDATE_TIMEOUT_S = 900.0
TRIAL_S = 60.0
"""How long an update is watched after it has taken over."""
ILL_S = 10.0
"""A model that is not ready for so long is ill; shorter, and a replica of it may have been replaced."""
FIXED = ("server", "auth", "limits", "logging", "tracing", "cascades", "cors", "callers")
"""Parts of the configuration that are read only at the start."""


class UpdateFailed(ServeError):
    """The new models do not run; the old ones continue."""

    code = "update_failed"


class Deployer(Protocol):
    """Deploys hosts: `ServeDeployer` with Ray Serve, a plain object in tests."""

    def deploy(self, hosts: Sequence[HostSpec]) -> None:
        """Start to replace the replicas of these hosts. Raises `UpdateFailed`."""

    def state(self, app: str) -> tuple[str, str]:
        """Return Serve's status of the application, and the reason for it."""


@dataclass
class Trial:
    """A host that has been updated, and is watched.

    former: the host that it replaces.
    until: when the trial ends, by the monotonic clock.
    ill_since: since when it has not been ready; None while it is.
    """

    former: HostSpec
    until: float = field(default_factory=lambda: time.monotonic() + TRIAL_S)
    ill_since: float | None = None


class Updater:
    """Replaces the running hosts that a new configuration changes.

    plan: makes hosts of a configuration.
    index: returns the state of every model; [] if it is not known. May raise `TimeoutError`.
    """

    def __init__(
        self,
        config: FewshardConfig,
        hosts: Sequence[HostSpec],
        plan: Callable[[FewshardConfig], list[HostSpec]],
        deployer: Deployer,
        is_stopping: Callable[[], bool] = lambda: False,
        index: Callable[[], Sequence[ModelEntry]] = tuple,
    ) -> None:
        self._config, self._plan, self._deployer = config, plan, deployer
        self._hosts = {host.app: host for host in hosts}
        self._is_stopping = is_stopping
        self._index = index
        self._trials: dict[str, Trial] = {}

    @property
    def is_watching(self) -> bool:
        """Whether an update is on trial."""
        return bool(self._trials)

    def update(self, config: FewshardConfig) -> list[str]:
        """Replace the replicas that changed, new ones first. Return the names of their models.

        Raises `ConfigError` for changes that need a restart. Raises `UpdateFailed` if a new replica does not
        start; the old hosts are then deployed again.
        """
        changed = self._changed(config)
        if not changed:
            return []
        try:
            self._deployer.deploy([replace(host, must_load=True) for host in changed])
            for host in changed:
                self._await(host.app)
        except UpdateFailed:
            self._take_back([self._hosts[host.app] for host in changed])
            raise
        self._config = config
        for host in changed:
            before = self._trials.get(host.app)  # an update of an update: the last that is known to answer
            self._trials[host.app] = Trial(self._hosts[host.app] if before is None else before.former)
            self._hosts[host.app] = host
        return [model.name for host in changed for model in host.models]

    def look(self) -> None:
        """Take back the updates whose models cannot answer. Raises `UpdateFailed` for the first of them."""
        for app, trial in list(self._trials.items()):
            ailment, now = self._ailment(app), time.monotonic()
            trial.ill_since = (trial.ill_since or now) if ailment else None
            if trial.ill_since is None and now > trial.until:
                del self._trials[app]
            elif trial.ill_since is not None and now - trial.ill_since >= ILL_S:
                del self._trials[app]
                self._hosts[app] = trial.former
                self._take_back([trial.former])
                raise UpdateFailed(f"{app} cannot answer, and goes back to what it was: {ailment}")

    def _take_back(self, hosts: Sequence[HostSpec]) -> None:
        with suppress(UpdateFailed):  # it happens as soon as Serve answers
            self._deployer.deploy(hosts)

    def _ailment(self, app: str) -> str:
        """Return why a host cannot answer; "" if it can, or if that is not known."""
        try:
            entries = self._index()
        except TimeoutError:
            entries = ()
        status, message = self._deployer.state(app)
        names = [model.name for model in self._hosts[app].models]
        reasons = [entry for entry in entries if entry.name in names and entry.state == "UNAVAILABLE"]
        if reasons:
            return "; ".join(f"{entry.name}: {entry.reason}" for entry in reasons)
        return (message or status) if status in ILL else ""

    def _changed(self, config: FewshardConfig) -> list[HostSpec]:
        for part in FIXED:
            if getattr(config, part) != getattr(self._config, part):
                raise ConfigError(f"{part} cannot change while the server runs; restart it")
        hosts = self._plan(config)
        if _places(hosts) != _places(self._hosts.values()):
            raise ConfigError(
                "models cannot be added, removed or given processes of their own while the server runs; "
                "restart it"
            )
        return [host for host in hosts if host != self._hosts[host.app]]

    def _await(self, app: str) -> None:
        give_up_at = time.monotonic() + UPDATE_TIMEOUT_S
        while not self._is_stopping():
            status, message = self._deployer.state(app)
            if status == "RUNNING":
                return
            if status == "DEPLOY_FAILED" or time.monotonic() > give_up_at:
                raise UpdateFailed(f"{app} cannot be updated, and stays as it is: {message or status}")
            time.sleep(POLL_S)


def _places(hosts: Any) -> dict[str, tuple[str, ...]]:
    """Return the names of the models of each application."""
    return {host.app: tuple(sorted(model.name for model in host.models)) for host in hosts}


RELOAD_POLL_S = 0.5
LOOK_S = 10.0
TRIAL_LOOK_S = 2.0
CALL_TIMEOUT_S = 10.0
"""How long Serve's controller may take to answer: a busy machine may need seconds."""
DEPLOY_TIMEOUT_S = 60.0
ILL = ("UNHEALTHY", "DEPLOY_FAILED")
MUTE = "Ray Serve's controller does not answer"


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

    def deploy(self, hosts: Sequence[HostSpec]) -> None:
        """Start to replace the replicas of these hosts, new ones first. Raises `UpdateFailed`.

        If Serve does not answer in time, it does so later, and before the next call.
        """
        from ray import serve

        from fewshard_serve.rayserve.deployment import host_application

        def run() -> None:
            serve.run_many(
                [serve.RunTarget(host_application(host), host.app, host.route_prefix) for host in hosts],
                wait_for_ingress_deployment_creation=False,
                wait_for_applications_running=False,
            )

        try:
            self._calls.start(run).result(DEPLOY_TIMEOUT_S)
        except TimeoutError as error:
            raise UpdateFailed(f"{MUTE}; send SIGHUP again when it does") from error
        except Exception as error:
            raise UpdateFailed(f"Ray Serve cannot deploy it: {error}") from error

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
        return "NOT_STARTED", "there is no such application"
    messages = [found.message, *(one.message for one in found.deployments.values())]
    return str(found.status.value), "; ".join(message for message in messages if message)


def serve_and_update(
    stop: StopRequest,
    updater: Updater,
    deployer: ServeDeployer,
    hosts: Sequence[HostSpec],
    read_again: Callable[[], FewshardConfig],
) -> None:
    """Until a stop is requested, apply new configurations and report unhealthy hosts."""
    look_at = watch_at = time.monotonic() + LOOK_S
    while not stop.wait(RELOAD_POLL_S):
        if stop.take_reload():
            _say_how(lambda: _update(updater, read_again))
        now = time.monotonic()
        if updater.is_watching and now >= watch_at:
            _say_how(updater.look)
            watch_at = now + TRIAL_LOOK_S
        if now >= look_at:
            deployer.tell_what_ails([host.app for host in hosts])
            look_at = now + LOOK_S


def _update(updater: Updater, read_again: Callable[[], FewshardConfig]) -> str:
    names = updater.update(read_again())
    return f"updated {', '.join(names)}" if names else "nothing has changed"


def _say_how(work: Callable[[], str | None]) -> None:
    try:
        said = work()
    except (ConfigError, UpdateFailed) as error:
        said = f"not updated: {error}"
    if said:
        write_line(f"fewshard: {said}", sys.stderr)
