"""How many replicas a host should have, by the items that wait or run; Ray Serve's controller calls it.

Replicas that die while they start: the next one waits longer and says so; called by `host`.

Ray Serve starts a replica again at once, for ever where one has run before, and loading a model keeps a
machine busy. A start leaves a file until it has succeeded; how many are left says how long to wait.
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


def autoscaling(replicas: "ReplicasConfig") -> dict[str, Any]:
    """Serve's `autoscaling_config`."""
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
"""After so long an old failure counts no more."""


@contextmanager
def counted_start(folder: str, app: str) -> Iterator[None]:
    """Wait for 0, 2, 4, 8 … seconds after 0, 1, 2, 3 … starts of `app` that have failed, then start.

    Blocks. `folder` is this machine's; where it is "" or gone, nothing is counted.
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
    yield  # what fails in here leaves the mark
    for done in (mark, *failed):
        done.unlink(missing_ok=True)


def wait_after(num_failed: int) -> float:
    """Seconds."""
    return min(MAX_WAIT_S, 2.0**num_failed) if num_failed else 0.0


def _counts(mark: Path) -> bool:
    """Whether its process is gone, and not long ago. One that still starts has not failed."""
    try:
        is_recent = time.time() - mark.stat().st_mtime < FORGET_S
    except FileNotFoundError:
        return False
    return is_recent and not Path("/proc", _parts(mark)[1]).exists()


def _parts(mark: Path) -> list[str]:
    """The application, which may hold dots, the process and the ending."""
    return mark.name.rsplit(".", 2)
