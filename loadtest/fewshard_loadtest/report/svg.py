"""Inline SVG drawings for `charts`, by matplotlib, which is imported only when one is drawn."""

import io
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes

WIDTH, HEIGHT = 720, 310
# CSS pixels from the edges to the axes: left, bottom, right, top. Line names are written at the right.
MARGINS = (64, 46, 150, 14)
PIXELS_PER_INCH = 96
LABEL_GAP = 15
INK, MUTED, FAINT, ALARM, DARK = "#222222", "#999999", "#DDDDDD", "#A00000", "#0B4A78"
# Okabe and Ito's palette, distinguishable with colour blindness.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#7F7F7F", INK)
# Seven markers with eight colours: more than fifty models look different.
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
DASHES: tuple[Any, ...] = ("-", (0, (6, 2)), (0, (2, 1.5)), (0, (8, 2, 2, 2)), (0, (1, 1)))
_LOOK: dict[str, Any] = {
    "font.sans-serif": ["DejaVu Sans"],
    "font.size": 9,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": INK,
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.spines.left": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": FAINT,
    "grid.linewidth": 0.6,
    "xtick.color": INK,
    "ytick.color": INK,
    "xtick.major.size": 0,
    "ytick.major.size": 0,
    "lines.linewidth": 1.6,
    "lines.markersize": 4.5,
    # Text stays text: it can be searched, copied and read aloud, and uses the page's font.
    "svg.fonttype": "none",
}
# Background of a name that covers a line.
_PAPER: dict[str, Any] = {"facecolor": "white", "edgecolor": "none", "alpha": 0.8, "pad": 1}


@dataclass(frozen=True, slots=True)
class Look:
    """The style of one model in all charts."""

    colour: str
    dash: Any
    marker: str

    @classmethod
    def of(cls, place: int) -> "Look":
        """The style of the model at this index of the report."""
        return cls(*(looks[place % len(looks)] for looks in (COLOURS, DASHES, MARKERS)))


def svg(
    title: str,
    draw: Callable[["Axes"], None],
    height: float = HEIGHT,
    margins: tuple[float, float, float, float] = MARGINS,
) -> str:
    """An `<svg>` element of WIDTH by `height` CSS pixels, drawn by `draw`. Equal data gives equal text.

    margins: CSS pixels to the axes, in the order of MARGINS.
    """
    import matplotlib
    from matplotlib.figure import Figure

    left, bottom, right, top = margins
    # Element ids derive from the salt: charts on one page must not share them.
    with matplotlib.rc_context({**_LOOK, "svg.hashsalt": title}):
        figure = Figure(figsize=(WIDTH / PIXELS_PER_INCH, height / PIXELS_PER_INCH))
        box = (left / WIDTH, bottom / height, 1 - (left + right) / WIDTH, 1 - (bottom + top) / height)
        axes = figure.add_axes(box)
        draw(axes)
        file = io.StringIO()
        figure.savefig(file, format="svg", metadata=dict.fromkeys(("Creator", "Date", "Format", "Type")))
    return _inline(file.getvalue(), title, height)


def _inline(document: str, title: str, height: float) -> str:
    """The drawing as an HTML element: no prologue, no unreferenced ids, no XLink."""
    _, _, body = document[document.index("<svg") :].partition(">")
    body = re.sub(r'<g id="[^"]*"', "<g", body).replace("xlink:href", "href")
    scale = 72 / PIXELS_PER_INCH
    size = f'viewBox="0 0 {WIDTH * scale:g} {height * scale:g}" width="{WIDTH}" height="{height:g}"'
    kind = f'role="img" aria-label="{escape(title)}" xmlns="http://www.w3.org/2000/svg"'
    return f"<svg {size} {kind}>{body.strip()}"


def scale(
    axes: "Axes", axis: str, label: str, is_log: bool = False, words: Callable[[float], str] | None = None
) -> None:
    """Label the axis "x" or "y" and set ticks at round values, formatted by `words`.

    Call it after drawing: the ticks depend on the limits.
    """
    from matplotlib import ticker

    axes.set(**{f"{axis}label": label, f"{axis}scale": "log" if is_log else "linear"})
    low, high = axes.get_xlim() if axis == "x" else axes.get_ylim()
    ticks = axes.xaxis if axis == "x" else axes.yaxis
    if is_log and high / low > 5:
        ticks.set_major_locator(ticker.LogLocator(subs=(1.0, 2.0, 5.0) if high / low < 1000 else (1.0,)))
    else:
        ticks.set_major_locator(ticker.MaxNLocator(6, steps=(1, 2, 2.5, 5, 10)))
    ticks.set_minor_locator(ticker.NullLocator())
    if is_log or words or high >= 1000:
        ticks.set_major_formatter(ticker.FuncFormatter(lambda value, _: (words or number)(value)))
    else:
        # The same number of decimals at each tick.
        ticks.set_major_formatter(ticker.ScalarFormatter(useOffset=False))


def number(value: float) -> str:
    """A tick's text: thousands separators, suffix M for millions."""
    value = float(f"{value:.9g}")
    if abs(value) >= 1e6:
        return f"{value / 1e6:g} M"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:g}"


@dataclass(frozen=True, slots=True)
class Name:
    """A label beside a data point; `has_line`: with a sample of the model's line."""

    text: str
    x: float
    y: float
    look: Look
    has_line: bool = False


def write_names(axes: "Axes", names: Sequence[Name], right: float | None = None) -> None:
    """Write labels beside their points, shifted vertically so that they do not overlap.

    right: x position of all labels as a share of the axes' width; None puts each beside its point. The axis
    limits must be final.
    """
    # Reading the limits fixes them, and the transformation with them.
    axes.get_xlim(), axes.get_ylim()
    to_share = axes.transData + axes.transAxes.inverted()
    # Among lines that end at the same height, the one that ends farthest right gets the top label.
    names = sorted(names, key=lambda name: -name.x)
    places = [to_share.transform((name.x, name.y)) for name in names]
    gap = LABEL_GAP / (axes.bbox.height / axes.figure.dpi * PIXELS_PER_INCH)
    lift = 0.0 if right is not None else gap
    heights = spread([float(place[1]) + lift for place in places], gap)
    for name, place, y in zip(names, places, heights, strict=True):
        x = float(place[0]) + 0.025 if right is None else right
        line = {
            "arrowstyle": "-",
            "color": name.look.colour,
            "linewidth": 0.7,
            "linestyle": ":",
            "shrinkA": 0,
        }
        axes.annotate(
            "", (name.x, name.y), (x, y), textcoords=axes.transAxes, arrowprops=line, annotation_clip=False
        )
        if name.has_line:
            look = {"color": name.look.colour, "linestyle": name.look.dash}
            axes.plot([x, x + 0.045], [y, y], transform=axes.transAxes, clip_on=False, **look)
            x += 0.045
        axes.text(x + 0.01, y, name.text, va="center", transform=axes.transAxes, bbox=_PAPER)


def spread(heights: Sequence[float], gap: float) -> list[float]:
    """The heights, shifted so that any two differ by at least `gap`.

    None exceeds 1 and, if there is room, none is below 0.
    """
    order = sorted(range(len(heights)), key=lambda place: -heights[place])
    moved, above = [0.0] * len(heights), 1.0 + gap
    for place in order:
        moved[place] = above = min(heights[place], above - gap)
    below = -gap
    for place in reversed(order):
        moved[place] = below = max(moved[place], below + gap)
    return moved
