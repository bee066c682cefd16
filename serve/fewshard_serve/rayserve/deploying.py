"""What the launcher does while a server runs: it deploys hosts anew, and says what ails them."""

import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

from fewshard_serve.config import FewshardConfig
from fewshard_serve.errors import ConfigError
from fewshard_serve.rayserve.signals import StopRequest
from fewshard_serve.rayserve.specs import HostSpec
from fewshard_serve.rayserve.updating import UpdateFailed, Updater

RELOAD_POLL_S = 0.5
LOOK_S = 10.0
ILL = ("UNHEALTHY", "DEPLOY_FAILED")


class ServeDeployer:
    """The running Serve's applications."""

    def __init__(self) -> None:
        self._told: dict[str, str] = {}

    def deploy(self, hosts: Sequence[HostSpec]) -> None:
        """Begin to replace the replicas of these hosts, new ones first."""
        from ray import serve

        from fewshard_serve.rayserve.host import host_application

        serve.run_many(
            [serve.RunTarget(host_application(host), host.app, host.route_prefix) for host in hosts],
            wait_for_ingress_deployment_creation=False,
            wait_for_applications_running=False,
        )

    def state(self, app: str) -> tuple[str, str]:
        """The status word of an application, and why it is that."""
        from ray import serve

        return _state(serve.status().applications.get(app))

    def tell_what_ails(self, apps: Sequence[str]) -> None:
        """Print a line for each application that is ill, once for each reason."""
        from ray import serve

        found = serve.status().applications
        for app in apps:
            status, why = _state(found.get(app))
            told = why if status in ILL else ""
            if told and told != self._told.get(app):
                print(f"fewshard: {app} is {status.lower()}: {told}", file=sys.stderr, flush=True)
            self._told[app] = told


def _state(found: Any) -> tuple[str, str]:
    """Of Serve's `ApplicationStatusOverview`."""
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
    """Until a stop is asked for: take new configurations over, and say what ails a host."""
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
    print(f"fewshard: {said}", file=sys.stderr, flush=True)
