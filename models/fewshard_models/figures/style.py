"""Style and output files of every figure. Needs matplotlib, from the extra `plots`."""

from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fewshard_models.errors import RecipeError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Okabe and Ito's palette: distinguishable with colour blindness, and dark to light in grey print.
BLUE, ORANGE, GREEN, PURPLE, GREY = "#0072B2", "#E69F00", "#009E73", "#CC79A7", "#7F7F7F"
COLOURS = (BLUE, ORANGE, GREEN, PURPLE, "#D55E00", "#56B4E9")
MARKERS = ("o", "s", "^", "D", "v", "P")
_LOOK: dict[str, Any] = {
    "font.size": 9,
    "axes.titlesize": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#DDDDDD",
    "grid.linewidth": 0.6,
    "axes.axisbelow": True,
    "legend.frameon": False,
    "lines.linewidth": 1.6,
    "figure.dpi": 160,
    # Equal figures give equal files, so that a repository sees only changes of the data.
    "svg.hashsalt": "fewshard",
    "svg.fonttype": "path",
}


def can_draw() -> bool:
    return find_spec("matplotlib") is not None


@contextmanager
def figure(width: float = 6.4, height: float = 3.8) -> Iterator["Figure"]:
    """A figure of that size in inches, in our style. Raises RecipeError if matplotlib is missing."""
    if not can_draw():
        raise RecipeError("figures need matplotlib: pip install 'fewshard[plots]'")
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context(_LOOK):
        yield Figure(figsize=(width, height), layout="constrained")


def save(figure: "Figure", folder: Path, name: str) -> list[Path]:
    """Save `name`.svg and `name`.png to `folder`; returns their paths. Call it inside `figure`'s block."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{name}.{ending}" for ending in ("svg", "png")]
    figure.savefig(paths[0], metadata={"Date": None})
    figure.savefig(paths[1])
    return paths


def millions(value: float) -> str:
    """A count with the suffix M or G, for labels."""
    return f"{value / 1e9:.3g} G" if value >= 1e9 else f"{value / 1e6:.3g} M"
