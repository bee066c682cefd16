"""Charts as inline SVG, for the screen and for paper: lines, points, bars and a grid; `page` places them.

The report's charts, each with its line of plain words; `page` places them.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from html import escape
from statistics import median

from fewshard_loadtest.report.answers import Share
from fewshard_loadtest.report.figures import Figures, ModelFigures
from fewshard_loadtest.report.format import milliseconds, percent

WIDTH, HEIGHT = 720, 310
LEFT, RIGHT, TOP, BOTTOM = 64, 150, 14, 46
COLOURS = ("#1f5fa8", "#c8501e", "#1b7f5c", "#9a4f96", "#8a6d00", "#3f8fb8", "#7a2e3a", "#555555")
DASHES = ("", "7 4", "2 3", "10 3 2 3", "", "7 4", "2 3", "10 3 2 3")
INK, FAINT = "#222", "#d9d9d9"
LABEL_GAP = 14


@dataclass(frozen=True, slots=True)
class Series:
    """Points in the order they are joined. `dots`: marks beside the line, each hollow or not."""

    name: str
    points: Sequence[tuple[float, float]]
    colour: str = COLOURS[0]
    dash: str = ""
    dots: Sequence[tuple[float, float, bool]] = ()


@dataclass(frozen=True, slots=True)
class Dot:
    """A named point; `whisker`: the ends of its interval on the upright axis."""

    name: str
    x: float
    y: float
    colour: str
    whisker: Sequence[float] = ()


@dataclass(frozen=True, slots=True)
class Axis:
    """`label` with its unit; `is_log` for what spans powers of ten; bounds where data should not set them."""

    label: str
    is_log: bool = False
    low: float | None = None
    high: float | None = None


@dataclass
class _Scale:
    """From values to pixels, and round ticks."""

    axis: Axis
    begin: float
    end: float
    low: float = field(init=False)
    high: float = field(init=False)

    def fit(self, values: Sequence[float]) -> "_Scale":
        there = [value for value in values if not self.axis.is_log or value > 0] or [1.0]
        low = min(there) if self.axis.low is None else self.axis.low
        high = max(there) if self.axis.high is None else self.axis.high
        if self.axis.is_log:
            self.low, self.high = low / 1.15, max(high, low * 2) * 1.15
        else:
            pad = 0.05 * (high - low) or 0.05 * abs(high) or 1.0
            self.low = low if self.axis.low is not None else low - pad
            self.high = high if self.axis.high is not None else high + pad
        return self

    def __call__(self, value: float) -> float:
        if self.axis.is_log:
            share = math.log(max(value, self.low) / self.low) / math.log(self.high / self.low)
        else:
            share = (value - self.low) / (self.high - self.low)
        return self.begin + min(max(share, 0.0), 1.0) * (self.end - self.begin)

    def ticks(self) -> list[float]:
        return _log_ticks(self.low, self.high) if self.axis.is_log else _even_ticks(self.low, self.high)


def _even_ticks(low: float, high: float) -> list[float]:
    raw = (high - low) / 5
    size = 10 ** math.floor(math.log10(raw))
    step = next(size * factor for factor in (1, 2, 2.5, 5, 10) if size * factor >= raw)
    first = math.ceil(low / step)
    return [round(number * step, 10) for number in range(first, math.floor(high / step) + 1)]


def _log_ticks(low: float, high: float) -> list[float]:
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    factors = (1, 2, 5) if math.log10(high / low) < 3 else (1,)
    ticks = [factor * 10.0**decade for decade in decades for factor in factors]
    return [tick for tick in ticks if low <= tick <= high]


def lines(
    series: Sequence[Series],
    x: Axis,
    y: Axis,
    limit: tuple[float, str] | None = None,
    y_tick: Callable[[float], str] | None = None,
) -> str:
    """`limit`: a horizontal line with its words, as an SLO. Names stand at the ends of their lines."""
    drawn = [one for one in series if one.points]
    shown = [point for one in drawn for point in (*one.points, *(dot[:2] for dot in one.dots))]
    xs = [point[0] for point in shown]
    ys = [point[1] for point in shown] + ([limit[0]] if limit else [])
    across = _Scale(x, LEFT, WIDTH - RIGHT).fit(xs)
    up = _Scale(y, HEIGHT - BOTTOM, TOP).fit(ys)
    parts = [_frame(across, up, y_tick)]
    if limit:
        at = up(limit[0])
        parts.append(_line(LEFT, at, WIDTH - RIGHT, at, "#a00", "5 3"))
        parts.append(_text(LEFT + 6, at - 5, limit[1], "start", "#a00"))
    for one in drawn:
        parts.append(_path([(across(a), up(b)) for a, b in one.points], one.colour, one.dash))
        parts += [_mark(across(a), up(b), one.colour, is_ring) for a, b, is_ring in one.dots]
    ends = [(up(one.points[-1][1]), across(one.points[-1][0]), one) for one in drawn]
    parts += _end_labels(ends)
    return _svg(parts)


def points(dots: Sequence[Dot], front: Sequence[tuple[float, float]], x: Axis, y: Axis) -> str:
    """Points by name; `front` is drawn as a step line behind them."""
    across = _Scale(x, LEFT, WIDTH - RIGHT).fit([dot.x for dot in dots])
    up = _Scale(y, HEIGHT - BOTTOM, TOP).fit([value for dot in dots for value in (dot.y, *dot.whisker)])
    parts = [_frame(across, up, None)]
    corners: list[tuple[float, float]] = []
    for a, b in front:
        if corners:
            corners.append((across(a), corners[-1][1]))
        corners.append((across(a), up(b)))
    parts.append(_path(corners, "#999", "4 3"))
    taken: list[float] = []
    for dot in sorted(dots, key=lambda dot: -dot.y):
        at = up(dot.y)
        while any(abs(at - other) < LABEL_GAP for other in taken):
            at += 2
        taken.append(at)
        if dot.whisker:
            low, high = (up(end) for end in dot.whisker)
            parts.append(_line(across(dot.x), low, across(dot.x), high, dot.colour))
        parts.append(f'<circle cx="{across(dot.x):.1f}" cy="{up(dot.y):.1f}" r="6" fill="{dot.colour}"/>')
        parts.append(_text(across(dot.x) + 10, at + 4, dot.name, "start", dot.colour))
    return _svg(parts)


def grid(rows: Sequence[tuple[str, Sequence[float]]], mean: float) -> str:
    """Shares as shades: a row a layer, a cell an expert; white is nothing, dark twice the mean and more."""
    most = max((len(cells) for _, cells in rows), default=1)
    size = min(40.0, (WIDTH - 110) / most)
    parts = []
    for line, (name, cells) in enumerate(rows):
        y = 8 + line * 26
        parts.append(_text(92, y + 16, name, "end", INK))
        for place, share in enumerate(cells):
            depth = min(share / (2 * mean), 1.0)
            shade = _mix((255, 255, 255), (31, 95, 168), depth)
            ink = "#fff" if depth > 0.55 else INK
            x = 100 + place * size
            parts.append(
                f'<rect x="{x:.1f}" y="{y}" width="{size - 2:.1f}" height="22" fill="{shade}" '
                f'stroke="{FAINT}"/>'
            )
            if size >= 24:
                parts.append(_text(x + size / 2 - 1, y + 15, f"{100 * share:.0f}", "middle", ink, size=10))
    return _svg(parts, height=16 + 26 * len(rows))


def _mix(a: tuple[int, int, int], b: tuple[int, int, int], share: float) -> str:
    return "#" + "".join(f"{round(x + (y - x) * share):02x}" for x, y in zip(a, b, strict=True))


def _frame(across: _Scale, up: _Scale, y_tick: Callable[[float], str] | None) -> str:
    parts = []
    for tick in up.ticks():
        parts.append(_line(LEFT, up(tick), WIDTH - RIGHT, up(tick), FAINT))
        parts.append(_text(LEFT - 7, up(tick) + 4, (y_tick or _number)(tick), "end", INK))
    for tick in across.ticks():
        parts.append(_line(across(tick), TOP, across(tick), HEIGHT - BOTTOM, "#eee"))
        parts.append(_text(across(tick), HEIGHT - BOTTOM + 17, _number(tick), "middle", INK))
    parts.append(_line(LEFT, HEIGHT - BOTTOM, WIDTH - RIGHT, HEIGHT - BOTTOM, INK))
    middle = (LEFT + WIDTH - RIGHT) / 2
    parts.append(_text(middle, HEIGHT - 8, across.axis.label, "middle", INK))
    height = (TOP + HEIGHT - BOTTOM) / 2
    parts.append(
        f'<text x="14" y="{height}" text-anchor="middle" fill="{INK}" '
        f'transform="rotate(-90 14 {height})">{escape(up.axis.label)}</text>'
    )
    return "".join(parts)


def _end_labels(ends: Sequence[tuple[float, float, Series]]) -> list[str]:
    """Names beside the right edge, moved apart where they would cover each other."""
    parts, last = [], -math.inf
    for at, x, one in sorted(ends, key=lambda end: end[0]):
        y = max(at, last + LABEL_GAP)
        last = y
        parts.append(_line(x + 3, at, WIDTH - RIGHT + 8, y, one.colour, "1 3"))
        parts.append(_text(WIDTH - RIGHT + 11, y + 4, one.name, "start", one.colour))
    return parts


def _path(corners: Sequence[tuple[float, float]], colour: str, dash: str) -> str:
    if not corners:
        return ""
    way = " ".join(f"{x:.1f},{y:.1f}" for x, y in corners)
    pattern = f' stroke-dasharray="{dash}"' if dash else ""
    return f'<polyline points="{way}" fill="none" stroke="{colour}" stroke-width="2"{pattern}/>'


def _mark(x: float, y: float, colour: str, is_ring: bool) -> str:
    fill = "#fff" if is_ring else colour
    return f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3.5" fill="{fill}" stroke="{colour}" stroke-width="1.5"/>'


def _line(x1: float, y1: float, x2: float, y2: float, colour: str, dash: str = "") -> str:
    pattern = f' stroke-dasharray="{dash}"' if dash else ""
    return f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" stroke="{colour}"{pattern}/>'


def _text(
    x: float, y: float, words: str, anchor: str, colour: str, weight: str = "400", size: int = 12
) -> str:
    look = f'text-anchor="{anchor}" fill="{colour}" font-weight="{weight}" font-size="{size}"'
    return f'<text x="{x:.1f}" y="{y:.1f}" {look}>{escape(words)}</text>'


def _number(value: float) -> str:
    if abs(value) >= 1e6:
        return f"{value / 1e6:g} M"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:g}"


def _svg(parts: Sequence[str], height: float = HEIGHT) -> str:
    size = f'viewBox="0 0 {WIDTH} {height:.0f}" width="{WIDTH}" height="{height:.0f}"'
    return f'<svg {size} role="img" xmlns="http://www.w3.org/2000/svg">{"".join(parts)}</svg>'


SAME_RATE = 1.03


def _colours(figures: Figures) -> dict[str, tuple[str, str]]:
    return {
        model.name: (COLOURS[number % len(COLOURS)], DASHES[number % len(DASHES)])
        for number, model in enumerate(figures.models)
    }


def every_chart(figures: Figures) -> list[str]:
    parts = []
    for task in dict.fromkeys(model.task for model in figures.models):
        models = [model for model in figures.models if model.task == task]
        suffix = f" ({task})" if len({model.task for model in figures.models}) > 1 else ""
        parts += [
            _curve(figures, models, suffix),
            _distribution(figures, models, suffix),
            _frontier(figures, models, suffix),
        ]
    parts += [_experts(model) for model in figures.models if model.experts]
    names = dict.fromkeys(name for model in figures.models for name in model.moments)
    parts += [_moments(figures, name) for name in names]
    return [part for part in parts if part]


def _curve(figures: Figures, models: Sequence[ModelFigures], suffix: str) -> str:
    look = _colours(figures)
    series = []
    for model in models:
        dots = [
            (point.rate, point.p99_ms, point.error_share > figures.slo.max_errors)
            for point in model.curve
            if point.p99_ms is not None
        ]
        series.append(Series(model.name, _middle(dots), *look[model.name], dots))
    if not any(one.points for one in series):
        return ""
    limit = (figures.slo.p99_ms, f"SLO {figures.slo.p99_ms:g} ms")
    chart = lines(
        series, Axis("predictions sent per second", low=0.0), Axis("p99 latency, ms", is_log=True), limit
    )
    return section(
        f"Latency against load{suffix}",
        chart,
        "One point a run, a line through their middle: how long all but the slowest hundredth waited "
        "at that load, counted from "
        "the moment "
        "each request was due. Where a line leaves the SLO, the model is at its end; hollow points "
        "had errors "
        "beyond the SLO.",
    )


def _middle(dots: Sequence[tuple[float, float, bool]]) -> list[tuple[float, float]]:
    """The median latency at each rate; rates within three percent of each other are one."""
    groups: list[list[tuple[float, float, bool]]] = []
    for dot in dots:
        if groups and dot[0] <= SAME_RATE * groups[-1][0][0]:
            groups[-1].append(dot)
        else:
            groups.append([dot])
    return [(median(dot[0] for dot in group), median(dot[1] for dot in group)) for group in groups]


def _distribution(figures: Figures, models: Sequence[ModelFigures], suffix: str) -> str:
    look = _colours(figures)
    series = [
        Series(
            model.name,
            # The share that waits longer, on a log scale: one step down is ten times rarer.
            [(ms, 1 - share) for share, ms in model.at_slo.quantiles if share < 1],
            *look[model.name],
        )
        for model in models
        if model.at_slo
    ]
    if not series:
        return ""
    chart = lines(
        series,
        Axis("latency, ms", is_log=True),
        Axis("share that waits longer", is_log=True, low=0.001, high=1.0),
        y_tick=lambda share: f"{100 * share:g} %",
    )
    note = ", ".join(
        f"{model.name} p50 {milliseconds(model.at_slo.p50_ms)}, p95 {milliseconds(model.at_slo.p95_ms)}, "
        f"p99 {milliseconds(model.at_slo.p99_ms)} ms"
        for model in models
        if model.at_slo
    )
    return section(
        f"Who waits how long at the sustained rate{suffix}",
        chart,
        f"The lower a line, the fewer requests wait so long. {note}.",
    )


def _frontier(figures: Figures, models: Sequence[ModelFigures], suffix: str) -> str:
    look, price = _colours(figures), figures.price
    placed = [
        Dot(model.name, cost, 100 * value, look[model.name][0], [100 * end for end in share.interval])
        for model in models
        if (cost := _cost(model, price is not None))
        and (share := _share(model))
        and (value := share.value) is not None
    ]
    if len(placed) < 2:
        return ""
    label = f"{price.currency} a million predictions" if price else "CPU ms a prediction"
    chart = points(placed, pareto([(dot.x, dot.y) for dot in placed]), Axis(label), Axis("accuracy, %"))
    return section(
        f"Accuracy against cost{suffix}",
        chart,
        "Up and to the left is better; whiskers are 95 % intervals. A model off the dashed line is "
        "no bargain: "
        "another is both cheaper and at least as accurate. Small differences of accuracy may be "
        "chance; see the "
        "paired test.",
    )


def _cost(model: ModelFigures, has_price: bool) -> float | None:
    if has_price:
        return model.money.per_million if model.money else None
    return model.cpu_ms


def _share(model: ModelFigures) -> Share | None:
    return model.accuracy.share if model.accuracy else None


def pareto(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Of (cost, accuracy): those that no other beats in both, by rising cost."""
    front: list[tuple[float, float]] = []
    for cost, accuracy in sorted(points, key=lambda point: (point[0], -point[1])):
        if not front or accuracy > front[-1][1]:
            front.append((cost, accuracy))
    return front


def _experts(model: ModelFigures) -> str:
    layers = sorted(model.experts.items(), key=lambda entry: _natural(entry[0]))
    rows = [
        (f"layer {layer}", [share for _, share in sorted(experts.items(), key=lambda e: _natural(e[0]))])
        for layer, experts in layers
    ]
    mean = 1 / max(len(cells) for _, cells in rows)
    return section(
        f"Experts of {model.name} during the run",
        grid(rows, mean),
        f"Percent of each layer's tokens that each expert received; even would be {percent(mean)}. A "
        "dark cell "
        "is an expert that does more than its part, a white one hardly works.",
    )


def _natural(name: str) -> tuple[int, str]:
    return (int(name), "") if name.isdigit() else (0, name)


def _moments(figures: Figures, name: str) -> str:
    look = _colours(figures)
    there = [model for model in figures.models if model.moments.get(name)]
    waits = [
        Series(
            model.name,
            [(m.at_s, m.p99_ms) for m in model.moments[name] if m.p99_ms is not None],
            *look[model.name],
        )
        for model in there
    ]
    sent = [
        Series(model.name, [(m.at_s, m.sent) for m in model.moments[name]], *look[model.name])
        for model in there
    ]
    if not any(one.points for one in waits):
        return ""
    time = Axis("seconds", low=0.0)
    chart = lines(waits, time, Axis("p99 latency, ms", is_log=True))
    rates = lines(sent, time, Axis("predictions sent per second", low=0.0))
    kind = name.partition(" ")[0]
    return section(
        f"In the course of time: {kind}",
        chart + rates,
        "The slowest hundredth of each stretch above, the load below: what a change of load does, "
        "and how soon "
        "it is over.",
    )


def section(title: str, body: str, note: str, kind: str = "") -> str:
    """A chart or table with its title and what it means."""
    look = f' class="{kind}"' if kind else ""
    return f'<section{look}><h2>{escape(title)}</h2>{body}<p class="note">{escape(note)}</p></section>'
