"""Autoscaling by items in flight, and increasing delays before replicas that keep failing to start.

Ray Serve's controller calls `ItemsPolicy`. `deployment` calls `counted_start`: Ray Serve restarts a dead
replica at once and without limit, and loading a model keeps a machine busy. Each start leaves a file until it
succeeds; the number of files left sets the delay.
"""

import logging
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # Serve's controller imports this module, and needs no configuration
    from fewshard_serve.config import ReplicasConfig

ITEMS = "items"
"""The name of the metric under which replicas report their items in flight."""
LOOK_BACK_S = 11.0
"""Serve averages over this window, which must exceed its own interval of 10 s."""


class ItemsPolicy:
    """Serve's autoscaling policy: enough replicas that each has `target_items` in flight.

    A request may hold one item or hundreds, so counting requests would mislead.
    """

    def __init__(self, target_items: float) -> None:
        self._target_items = target_items

    def __call__(self, context: Any) -> tuple[float, dict[str, Any]]:
        """Return the desired number of replicas. Serve applies bounds and delays."""
        reported = (context.aggregated_metrics or {}).get(ITEMS, {})
        if not reported:  # before the first report
            return context.target_num_replicas, {}
        return sum(reported.values()) / self._target_items, {}


def autoscaling(replicas: "ReplicasConfig") -> dict[str, Any]:
    """Return Serve's `autoscaling_config`."""
    return {
        "min_replicas": replicas.min,
        "max_replicas": replicas.max,
        "upscale_delay_s": replicas.scale_up_s,
        "downscale_delay_s": replicas.scale_down_s,
        "look_back_period_s": LOOK_BACK_S,
        "policy": {
            "policy_function": f"{__name__}:ItemsPolicy",
            "policy_kwargs": {"target_items": replicas.target_items},
        },
    }


logger = logging.getLogger(__name__)

MAX_WAIT_S = 60.0
FORGET_S = 600.0
"""A failed start that is older than this no longer counts."""


@contextmanager
def counted_start(folder: str, app: str) -> Iterator[None]:
    """Wait 0, 2, 4, 8 … seconds after 0, 1, 2, 3 … failed starts of `app`, then run the start.

    Blocks. `folder` is on this machine; if it is "" or does not exist, nothing is counted.
    """
    if not folder or not Path(folder).is_dir():
        yield
        return
    failed = [
        mark for mark in Path(folder).glob(f"{app}.*.start") if _parts(mark)[0] == app and _counts(mark)
    ]
    mark = Path(folder, f"{app}.{os.getpid()}.start")
    wait_s = wait_after(len(failed))
    if wait_s:
        logger.warning(
            "%s: %d replicas have died or failed while they started; the next one starts in %.0f s",
            app,
            len(failed),
            wait_s,
        )
    mark.touch()
    time.sleep(wait_s)
    yield  # an exception in the body leaves the mark in place
    for done in (mark, *failed):
        done.unlink(missing_ok=True)


def wait_after(num_failed: int) -> float:
    """Return the delay in seconds before the next start: 2**num_failed, at most `MAX_WAIT_S`; 0 without
    failures."""
    return min(MAX_WAIT_S, 2.0**num_failed) if num_failed else 0.0


def _counts(mark: Path) -> bool:
    """Return whether the mark's process ended recently without success. A process that still starts has not
    failed."""
    try:
        is_recent = time.time() - mark.stat().st_mtime < FORGET_S
    except FileNotFoundError:
        return False
    return is_recent and not Path("/proc", _parts(mark)[1]).exists()


def _parts(mark: Path) -> list[str]:
    """Return the application (which may contain dots), the process id and the suffix."""
    return mark.name.rsplit(".", 2)
