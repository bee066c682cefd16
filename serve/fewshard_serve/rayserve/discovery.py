"""Tracks which replicas answer scrapes, and finds each replica's own HTTP address for Prometheus.

The gateway calls it. Addresses come from Ray Serve's controller; the rest runs without Ray.
"""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fewshard_serve.rayserve.deployment_plan import GATEWAY_APP

UNNAMED = "unknown"
"""Stands for a replica that hangs and whose name was never known."""
GATEWAY_METRICS = "/metrics/gateway"


@dataclass(frozen=True, slots=True)
class Target:
    """A replica's own HTTP address, and the path of its application's metrics."""

    address: str
    metrics_path: str


FindTargets = Callable[[], Awaitable[Sequence[Target]]]


class Replicas:
    """Remembers replica names, because a replica that hangs cannot report its own."""

    def __init__(self) -> None:
        self._names: dict[str, list[str]] = {}

    def update(self, answers: Mapping[str, Sequence[str | Exception]]) -> dict[tuple[str, str], bool]:
        """Return whether each replica, by application and name, is up.

        `answers` maps each application to the names of its replicas, with an exception for each one that did
        not answer. Unanswered calls are assigned to the known silent names that were seen last: earlier
        silent replicas are taken to have ended.
        """
        is_up: dict[tuple[str, str], bool] = {}
        for app, some in answers.items():
            up = [each for each in some if isinstance(each, str)]
            silent = [name for name in self._names.get(app, []) if name not in up]
            num_missing = len(some) - len(up)
            missing = silent[len(silent) - num_missing :] if num_missing else []
            self._names[app] = [*missing, *up]
            is_up |= {(app, name): False for name in missing}
            if len(missing) < num_missing:
                is_up[app, UNNAMED] = False
            is_up |= {(app, name): True for name in up}
        return is_up


def http_discovery(targets: Sequence[Target]) -> list[dict[str, Any]]:
    """Return the body that Prometheus' HTTP service discovery reads.

    Samples already carry the labels application and replica.
    https://prometheus.io/docs/prometheus/latest/http_sd
    """
    return [
        {"targets": [each.address], "labels": {"__metrics_path__": each.metrics_path}} for each in targets
    ]


async def find_targets() -> Sequence[Target]:
    """Return every replica that accepts requests. Empty if only proxies do (no direct ingress)."""
    import ray
    from ray.serve._private.constants import SERVE_CONTROLLER_NAME, SERVE_NAMESPACE

    controller: Any = ray.get_actor(SERVE_CONTROLLER_NAME, namespace=SERVE_NAMESPACE)
    groups = await controller.get_target_groups.remote(from_proxy_manager=True)
    return [
        Target(f"{_host(target.ip)}:{target.port}", _path(group))
        for group in groups
        if group.app_name and group.protocol.value == "HTTP"
        for target in group.targets
    ]


def _path(group: Any) -> str:
    return GATEWAY_METRICS if group.app_name == GATEWAY_APP else f"{group.route_prefix}/metrics"


def _host(ip: str) -> str:
    return f"[{ip}]" if ":" in ip else ip
