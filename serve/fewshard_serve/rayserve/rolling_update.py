"""Applies a changed configuration while the server runs, without losing requests; called by `launch`."""

import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, Protocol

from fewshard_serve.config import FewshardConfig
from fewshard_serve.errors import ConfigError, ServeError
from fewshard_serve.logs import write_line
from fewshard_serve.rayserve.deployment_plan import HostSpec
from fewshard_serve.rayserve.signals import StopRequest

POLL_S = 1.0
UPDATE_TIMEOUT_S = 900.0
FIXED = ("server", "auth", "limits", "logging", "tracing", "cascades", "cors")
"""Parts of the configuration that are read only at the start."""


class UpdateFailed(ServeError):
    """The new models do not run; the old ones continue."""

    code = "update_failed"


class Deployer(Protocol):
    """Deploys hosts: `ServeDeployer` with Ray Serve, a plain object in tests."""

    def deploy(self, hosts: Sequence[HostSpec]) -> None:
        """Start to replace the replicas of these hosts."""

    def state(self, app: str) -> tuple[str, str]:
        """Return Serve's status of the application, and the reason for it."""


class Updater:
    """Replaces the running hosts that a new configuration changes. `plan` makes hosts of a configuration."""

    def __init__(
        self,
        config: FewshardConfig,
        hosts: Sequence[HostSpec],
        plan: Callable[[FewshardConfig], list[HostSpec]],
        deployer: Deployer,
        is_stopping: Callable[[], bool] = lambda: False,
    ) -> None:
        self._config, self._plan, self._deployer = config, plan, deployer
        self._hosts = {host.app: host for host in hosts}
        self._is_stopping = is_stopping

    def update(self, config: FewshardConfig) -> list[str]:
        """Replace the replicas that changed, new ones first. Return the names of their models.

        Raises `ConfigError` for changes that need a restart. Raises `UpdateFailed` if a new replica does not
        start; the old hosts are then deployed again.
        """
        changed = self._changed(config)
        if not changed:
            return []
        self._deployer.deploy([replace(host, must_load=True) for host in changed])
        try:
            for host in changed:
                self._await(host.app)
        except UpdateFailed:
            self._deployer.deploy([self._hosts[host.app] for host in changed])
            raise
        self._config = config
        self._hosts |= {host.app: host for host in changed}
        return [model.name for host in changed for model in host.models]

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
ILL = ("UNHEALTHY", "DEPLOY_FAILED")


class ServeDeployer:
    """Deploys to the running Ray Serve."""

    def __init__(self) -> None:
        self._reported: dict[str, str] = {}

    def deploy(self, hosts: Sequence[HostSpec]) -> None:
        """Start to replace the replicas of these hosts, new ones first."""
        from ray import serve

        from fewshard_serve.rayserve.deployment import host_application

        serve.run_many(
            [serve.RunTarget(host_application(host), host.app, host.route_prefix) for host in hosts],
            wait_for_ingress_deployment_creation=False,
            wait_for_applications_running=False,
        )

    def state(self, app: str) -> tuple[str, str]:
        """Return the status of an application, and the reason for it."""
        from ray import serve

        return _state(serve.status().applications.get(app))

    def tell_what_ails(self, apps: Sequence[str]) -> None:
        """Print a line for each unhealthy application, once for each reason."""
        from ray import serve

        found = serve.status().applications
        for app in apps:
            status, why = _state(found.get(app))
            told = why if status in ILL else ""
            if told and told != self._reported.get(app):
                write_line(f"fewshard: {app} is {status.lower()}: {told}", sys.stderr)
            self._reported[app] = told


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
    look_at = time.monotonic() + LOOK_S
    while not stop.wait(RELOAD_POLL_S):
        if stop.take_reload():
            _update(updater, read_again)
        if time.monotonic() >= look_at:
            deployer.tell_what_ails([host.app for host in hosts])
            look_at = time.monotonic() + LOOK_S


def _update(updater: Updater, read_again: Callable[[], FewshardConfig]) -> None:
    try:
        names = updater.update(read_again())
        said = f"updated {', '.join(names)}" if names else "nothing has changed"
    except (ConfigError, UpdateFailed) as error:
        said = f"not updated: {error}"
    write_line(f"fewshard: {said}", sys.stderr)
