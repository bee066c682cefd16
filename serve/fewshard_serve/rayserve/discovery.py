"""Which replicas answered the last scrape, and where each can be scraped by itself; without Ray.

Asks Ray Serve's controller where each replica's own HTTP server is; called by the gateway.
"""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fewshard_serve.rayserve.deployment_plan import GATEWAY_APP

UNNAMED = "unknown"
"""A replica that hangs and never said its name."""
GATEWAY_METRICS = "/metrics/gateway"


@dataclass(frozen=True, slots=True)
class Target:
    """A replica's own HTTP server, and the path under which its application's metrics are."""

    address: str
    metrics_path: str


FindTargets = Callable[[], Awaitable[Sequence[Target]]]


class Replicas:
    """Remembers names, since one that hangs does not say which it is."""

    def __init__(self) -> None:
        self._names: dict[str, list[str]] = {}

    def update(self, answers: Mapping[str, Sequence[str | Exception]]) -> dict[tuple[str, str], bool]:
        """Whether each replica, by application and name, is up.

        `answers`: by application, the name or what went wrong in place of it. Of names that are known and
        silent, those heard of last are taken for the ones that hang: the others ended earlier.
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
    """The body that Prometheus' HTTP service discovery reads; samples carry application and replica already.

    https://prometheus.io/docs/prometheus/latest/http_sd
    """
    return [
        {"targets": [each.address], "labels": {"__metrics_path__": each.metrics_path}} for each in targets
    ]


async def find_targets() -> Sequence[Target]:
    """Every replica that takes requests. Empty where only proxies do (no direct ingress)."""
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
