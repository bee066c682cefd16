"""Takes a changed configuration over while the server runs, without losing a request; called by `launch`."""

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, Protocol

from fewshard_serve.config import FewshardConfig
from fewshard_serve.errors import ConfigError, FewshardError
from fewshard_serve.rayserve.specs import HostSpec

POLL_S = 1.0
UPDATE_TIMEOUT_S = 900.0
FIXED = ("server", "auth", "limits", "logging", "tracing", "cascades")
"""Parts of the configuration that are read once."""


class UpdateFailed(FewshardError):
    """The new models do not run; the old ones go on."""

    code = "update_failed"


class Deployer(Protocol):
    """How hosts are deployed: `serving` with Ray Serve, a plain object in tests."""

    def deploy(self, hosts: Sequence[HostSpec]) -> None:
        """Begin to replace the replicas of these hosts."""

    def state(self, app: str) -> tuple[str, str]:
        """Serve's status word of the application, and why."""


class Updater:
    """What runs, and how it becomes something else. `plan` makes hosts of a configuration."""

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
        """Replace the replicas of what has changed, new ones first; the names of the models concerned.

        Raises `ConfigError` for changes that need a restart, `UpdateFailed` where a new replica does not
        start; then all is as before.
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
    """Which models are where."""
    return {host.app: tuple(sorted(model.name for model in host.models)) for host in hosts}
