"""Load of shards under one or more placements, as a picture. Called by `fewshard plan`."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from fewshard_models.errors import DataError
from fewshard_models.figures.style import BLUE, GREY, ORANGE, figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes

ENDINGS = (".svg", ".png", ".pdf")
MAX_BARS = 64

Loads = NDArray[np.float64]


def require_ending(file: Path) -> None:
    """Raise DataError for a file name without a supported picture format."""
    if file.suffix.lower() not in ENDINGS:
        raise DataError(f"{file}: a picture's name ends in {', '.join(ENDINGS)}")


def draw_shards(
    chosen: tuple[str, Loads], others: Mapping[str, Loads], bound: float, title: str, file: Path
) -> None:
    """Write the picture in the format of the file's suffix. Raises DataError for an unknown one.

    Loads are [num_layers, num_shards], relative to the mean of their layer. Shards are sorted by load in each
    layer, since every layer waits for its own heaviest shard. `bound`: the lower bound on the heaviest load,
    averaged over the layers.
    """
    require_ending(file)
    name, loads = chosen
    with figure(7.0, 3.8) as drawn:
        axes = drawn.add_subplot()
        _shards(axes, _ordered(loads), name)
        for (other, theirs), colour in zip(others.items(), (ORANGE, GREY), strict=False):
            _outline(axes, _ordered(theirs), other, colour)
        least = f"no placement below {bound:.2f}"
        axes.axhline(bound, color="black", linestyle=":", linewidth=1.2, label=least)
        highest = max(each.mean(axis=0).max() for each in map(_ordered, others.values())) if others else 0
        axes.set_ylim(0, 1.1 * max(loads.max(), bound, highest))
        axes.set_xlim(-0.5, loads.shape[1] - 0.5)
        axes.set_xlabel("shard, heaviest first in each layer")
        axes.set_ylabel("load, 1 = mean of the layer")
        axes.set_title(title)
        axes.grid(axis="x", visible=False)
        look: dict[str, Any] = {"frameon": True, "framealpha": 0.9, "edgecolor": "none", "alignment": "left"}
        axes.legend(title="heaviest shard", loc="best" if others else "lower left", **look)
        file.parent.mkdir(parents=True, exist_ok=True)
        drawn.savefig(file, metadata={"Date": None} if file.suffix.lower() == ".svg" else None)


def _ordered(loads: Loads) -> Loads:
    return np.asarray(-np.sort(-loads, axis=1))


def _shards(axes: "Axes", loads: Loads, name: str) -> None:
    """Draw bars with the range over layers, or a band if bars would be too thin."""
    mean, low, high = loads.mean(axis=0), loads.min(axis=0), loads.max(axis=0)
    shard, label = np.arange(len(mean)), f"{name}: {mean[0]:.2f}"
    if len(mean) > MAX_BARS:
        axes.fill_between(shard, low, high, step="mid", color=BLUE, alpha=0.25, linewidth=0)
        axes.step(shard, mean, where="mid", color=BLUE, label=label)
        return
    spread = np.maximum([mean - low, high - mean], 0)
    shown = {"elinewidth": 0.9, "capsize": 1.5, "ecolor": "#333333"} if spread.max() > 0.01 else None
    range_: dict[str, Any] = {} if shown is None else {"yerr": spread, "error_kw": shown}
    axes.bar(shard, mean, width=0.75, color=BLUE, label=label, **range_)


def _outline(axes: "Axes", loads: Loads, name: str, colour: str) -> None:
    mean = loads.mean(axis=0)
    axes.stairs(
        mean, np.arange(len(mean) + 1) - 0.5, color=colour, linewidth=1.4, label=f"{name}: {mean[0]:.2f}"
    )
