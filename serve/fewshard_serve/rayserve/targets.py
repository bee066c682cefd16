"""Asks Ray Serve's controller where each replica's own HTTP server is; called by the gateway."""

from collections.abc import Sequence
from typing import Any

from fewshard_serve.rayserve.replicas import GATEWAY_METRICS, Target
from fewshard_serve.rayserve.specs import GATEWAY_APP


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
