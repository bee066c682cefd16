"""How many replicas a host should have, by the items that wait or run; Ray Serve's controller calls it."""

from typing import Any

from fewshard_serve.engine.settings import Scaling

ITEMS = "items"
"""The name under which replicas report how many items are in flight."""
LOOK_BACK_S = 11.0
"""Serve averages over so long; it wants more than its own interval of 10 s."""


class ItemsPolicy:
    """Serve's autoscaling policy: as many replicas as leave each with `target_items` in flight.

    A request may hold one item or hundreds, so requests are the wrong thing to count.
    """

    def __init__(self, target_items: float) -> None:
        self._target_items = target_items

    def __call__(self, context: Any) -> tuple[float, dict[str, Any]]:
        """The number wished for; Serve applies bounds and delays."""
        reported = (context.aggregated_metrics or {}).get(ITEMS, {})
        if not reported:  # before the first report
            return context.target_num_replicas, {}
        return sum(reported.values()) / self._target_items, {}


def autoscaling(min_replicas: int, max_replicas: int, scaling: Scaling) -> dict[str, Any]:
    """Serve's `autoscaling_config`."""
    return {
        "min_replicas": min_replicas,
        "max_replicas": max_replicas,
        "upscale_delay_s": scaling.scale_up_s,
        "downscale_delay_s": scaling.scale_down_s,
        "look_back_period_s": LOOK_BACK_S,
        "policy": {
            "policy_function": f"{__name__}:ItemsPolicy",
            "policy_kwargs": {"target_items": scaling.target_items},
        },
    }
