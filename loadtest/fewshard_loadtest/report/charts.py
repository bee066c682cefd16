"""The report's charts, each with an explanatory line. `page` places them."""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from fewshard_loadtest.report.answers import Share
from fewshard_loadtest.report.figures import Figures, ModelFigures
from fewshard_loadtest.report.format import milliseconds, percent
from fewshard_loadtest.report.latency import Point
from fewshard_loadtest.report.svg import (
    ALARM,
    DARK,
    FAINT,
    INK,
    MUTED,
    WIDTH,
    Look,
    Name,
    scale,
    svg,
    write_names,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes

SAME_RATE = 1.03
LEAST_SHARE = 0.001
ROW_HEIGHT, CELL_WIDTH, LEAST_CELL_WITH_NUMBER, NAMES_WIDTH = 26, 40, 24, 72
BESIDE_AXES = 1.03
Looks = dict[str, Look]


@dataclass(frozen=True, slots=True)
class Chart:
    """One or more drawings under a title.

    title: the title.
    svgs: HTML elements.
    note: a line that explains them.
    """

    title: str
    svgs: tuple[str, ...]
    note: str


def every_chart(figures: Figures) -> list[Chart]:
    """All charts in the report's order; charts without data are left out."""
    looks = {model.name: Look.of(place) for place, model in enumerate(figures.models)}
    tasks = dict.fromkeys(model.task for model in figures.models)
    charts: list[Chart | None] = []
    for task in tasks:
        models = [model for model in figures.models if model.task == task]
        suffix = f" ({task})" if len(tasks) > 1 else ""
        charts.append(_curve(figures, models, looks, f"Latency against load{suffix}"))
        charts.append(_distribution(models, looks, f"Who waits how long at the sustained rate{suffix}"))
        charts.append(_frontier(figures, models, looks, f"Accuracy against cost{suffix}"))
    charts += [_experts(model) for model in figures.models if model.experts]
    loads = dict.fromkeys(name for model in figures.models for name in model.moments)
    charts += [_moments(figures, name, looks) for name in loads]
    return [chart for chart in charts if chart]


def _curve(figures: Figures, models: Sequence[ModelFigures], looks: Looks, title: str) -> Chart | None:
    curves = {model.name: [point for point in model.curve if point.p99_ms is not None] for model in models}
    if not any(curves.values()):
        return None

    def draw(axes: "Axes") -> None:
        for name, points in curves.items():
            _draw_curve(axes, points, looks[name], figures.slo.max_errors)
        _draw_limit(axes, figures.slo.p99_ms)
        axes.set_xlim(left=0)
        scale(axes, "x", "predictions sent per second")
        scale(axes, "y", "p99 latency, ms", is_log=True)
        _name_ends(axes, {name: middle_of(points) for name, points in curves.items()}, looks)

    return Chart(
        title,
        (svg(title, draw),),
        "One point a run, a line through their middle: how long all but the slowest hundredth waited at "
        "that load, counted from the moment each request was due. Where a line leaves the SLO, the model is "
        "at its end; hollow points had errors beyond the SLO.",
    )


def _draw_curve(axes: "Axes", points: Sequence[Point], look: Look, max_errors: float) -> None:
    axes.plot(*_columns(middle_of(points)), color=look.colour, linestyle=look.dash)
    for has_errors, inside in ((False, look.colour), (True, "white")):
        dots = [(p.rate, p.p99_ms) for p in points if (p.error_share > max_errors) is has_errors]
        axes.plot(*_columns(dots), look.marker, color=look.colour, markerfacecolor=inside, linestyle="")


def _draw_limit(axes: "Axes", p99_ms: float) -> None:
    axes.axhline(p99_ms, color=ALARM, linestyle=(0, (5, 3)), linewidth=1)
    axes.annotate(
        f"SLO {p99_ms:g} ms",
        (0, p99_ms),
        (4, 3),
        xycoords=axes.get_yaxis_transform(),
        textcoords="offset points",
        color=ALARM,
    )


def _name_ends(axes: "Axes", lines: dict[str, list[tuple[float, float]]], looks: Looks) -> None:
    """Write each line's name to its right, near the height of its end."""
    names = [Name(name, *line[-1], looks[name], has_line=True) for name, line in lines.items() if line]
    write_names(axes, names, BESIDE_AXES)


def middle_of(points: Sequence[Point]) -> list[tuple[float, float]]:
    """Median p99 at each rate, by ascending rate; rates within three percent are grouped."""
    groups: list[list[tuple[float, float]]] = []
    for point in points:
        if point.p99_ms is None:
            continue
        if groups and point.rate <= SAME_RATE * groups[-1][0][0]:
            groups[-1].append((point.rate, point.p99_ms))
        else:
            groups.append([(point.rate, point.p99_ms)])
    return [(median(rate for rate, _ in group), median(ms for _, ms in group)) for group in groups]


def _columns(points: Sequence[tuple[float, float | None]]) -> NDArray[np.float64]:
    """The points as two rows, x and y."""
    return np.array(points, dtype=np.float64).reshape(-1, 2).T


def _distribution(models: Sequence[ModelFigures], looks: Looks, title: str) -> Chart | None:
    latencies = {model.name: model.at_slo for model in models if model.at_slo}
    if not latencies:
        return None
    # Share of requests with a longer latency, on a log scale: each decade down is ten times rarer.
    tails = {
        name: [(ms, max(1 - share, LEAST_SHARE)) for share, ms in latency.quantiles if share < 1]
        for name, latency in latencies.items()
    }

    def draw(axes: "Axes") -> None:
        for name, tail in tails.items():
            axes.plot(*_columns(tail), color=looks[name].colour, linestyle=looks[name].dash)
        axes.set_ylim(LEAST_SHARE, 1.0)
        scale(axes, "x", "latency, ms", is_log=True)
        scale(axes, "y", "share that waits longer", is_log=True, words=lambda share: f"{100 * share:g} %")
        _name_ends(axes, tails, looks)

    each = ", ".join(
        f"{name} p50 {milliseconds(latency.p50_ms)}, p95 {milliseconds(latency.p95_ms)}, "
        f"p99 {milliseconds(latency.p99_ms)} ms"
        for name, latency in latencies.items()
    )
    note = f"The lower a line, the fewer requests wait so long. {each}."
    return Chart(title, (svg(title, draw),), note)


@dataclass(frozen=True, slots=True)
class _Place:
    """A model's cost and accuracy in percent, with the accuracy's interval."""

    name: str
    cost: float
    accuracy: float
    low: float
    high: float


def _frontier(figures: Figures, models: Sequence[ModelFigures], looks: Looks, title: str) -> Chart | None:
    price = figures.price
    places = [place for model in models if (place := _place(model, price is not None))]
    if len(places) < 2:
        return None
    label = f"{price.currency} a million predictions" if price else "CPU ms a prediction"
    return Chart(
        title,
        (svg(title, lambda axes: _draw_frontier(axes, places, looks, label)),),
        "Up and to the left is better; whiskers are 95 % intervals. A model off the dashed line is no "
        "bargain: another is both cheaper and at least as accurate. Small differences of accuracy may be "
        "chance; see the paired test.",
    )


def _draw_frontier(axes: "Axes", places: Sequence[_Place], looks: Looks, label: str) -> None:
    front = pareto([(place.cost, place.accuracy) for place in places])
    axes.step(*_columns(front), where="post", color=MUTED, linestyle=(0, (4, 3)), linewidth=1)
    for place in places:
        look, error = looks[place.name], [[place.accuracy - place.low], [place.high - place.accuracy]]
        axes.errorbar(
            place.cost, place.accuracy, error, fmt=look.marker, color=look.colour, markersize=7, capsize=3
        )
    axes.margins(x=0.08)
    scale(axes, "x", label)
    scale(axes, "y", "accuracy, %")
    write_names(axes, [Name(place.name, place.cost, place.accuracy, looks[place.name]) for place in places])


def _place(model: ModelFigures, has_price: bool) -> _Place | None:
    """A model's place in the chart; None if cost or accuracy is unknown."""
    cost = (model.money.per_million if model.money else None) if has_price else model.cpu_ms
    share: Share | None = model.accuracy.share if model.accuracy else None
    if not cost or share is None or share.value is None:
        return None
    low, high = share.interval
    return _Place(model.name, cost, 100 * share.value, 100 * low, 100 * high)


def pareto(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """The Pareto-optimal points (cost, accuracy), by ascending cost."""
    front: list[tuple[float, float]] = []
    for cost, accuracy in sorted(points, key=lambda point: (point[0], -point[1])):
        if not front or accuracy > front[-1][1]:
            front.append((cost, accuracy))
    return front


def _experts(model: ModelFigures) -> Chart:
    layers = sorted(model.experts.items(), key=lambda entry: _natural(entry[0]))
    rows = {
        f"layer {layer}": [
            share for _, share in sorted(experts.items(), key=lambda entry: _natural(entry[0]))
        ]
        for layer, experts in layers
    }
    most = max(len(cells) for cells in rows.values())
    width = min(CELL_WIDTH, (WIDTH - NAMES_WIDTH) / most)
    title = f"Experts of {model.name} during the run"
    margins = (NAMES_WIDTH, 4.0, WIDTH - NAMES_WIDTH - width * most, 4.0)
    has_numbers = width >= LEAST_CELL_WITH_NUMBER
    height = ROW_HEIGHT * len(rows) + 8
    return Chart(
        title,
        (svg(title, lambda axes: _draw_experts(axes, rows, most, has_numbers), height, margins),),
        f"Percent of each layer's tokens that each expert received; even would be {percent(1 / most)}. A "
        "dark cell is an expert that does more than its part, a white one hardly works.",
    )


def _draw_experts(axes: "Axes", rows: dict[str, list[float]], most: int, has_numbers: bool) -> None:
    """A row per layer, a cell per expert. White is zero; the darkest shade is twice the mean or more."""
    from matplotlib.colors import LinearSegmentedColormap

    shades = LinearSegmentedColormap.from_list("shades", ["#FFFFFF", DARK])
    cells = [[*row, *[float("nan")] * (most - len(row))] for row in rows.values()]
    axes.pcolormesh(cells, cmap=shades, vmin=0, vmax=2 / most, edgecolors=FAINT, linewidth=0.8)
    for y, row in enumerate(rows.values()):
        for x, share in enumerate(row if has_numbers else ()):
            ink = "white" if share > 1.3 / most else INK
            axes.text(x + 0.5, y + 0.5, f"{100 * share:.0f}", color=ink, ha="center", va="center", size=8)
    axes.set_yticks([y + 0.5 for y in range(len(rows))], [*rows])
    axes.set_xticks([])
    axes.grid(visible=False)
    axes.invert_yaxis()
    axes.spines[:].set_visible(False)


def _natural(name: str) -> tuple[int, str]:
    return (int(name), "") if name.isdigit() else (0, name)


def _moments(figures: Figures, load: str, looks: Looks) -> Chart | None:
    there = {model.name: model.moments[load] for model in figures.models if model.moments.get(load)}
    waits = {
        name: [(moment.at_s, moment.p99_ms) for moment in moments if moment.p99_ms is not None]
        for name, moments in there.items()
    }
    sent = {name: [(moment.at_s, moment.sent) for moment in moments] for name, moments in there.items()}
    if not any(waits.values()):
        return None

    def draw(axes: "Axes", lines: dict[str, list[tuple[float, float]]], label: str, is_log: bool) -> None:
        for name, line in lines.items():
            axes.plot(*_columns(line), color=looks[name].colour, linestyle=looks[name].dash)
        axes.set_xlim(left=0)
        scale(axes, "x", "seconds")
        scale(axes, "y", label, is_log)
        _name_ends(axes, lines, looks)

    title = f"In the course of time: {load.partition(' ')[0]}"
    above = svg(f"{title}, latency", lambda axes: draw(axes, waits, "p99 latency, ms", is_log=True))
    below = svg(f"{title}, load", lambda axes: draw(axes, sent, "predictions sent per second", is_log=False))
    return Chart(
        title,
        (above, below),
        "The slowest hundredth of each stretch above, the load below: what a change of load does, and how "
        "soon it is over.",
    )
