"""The report's charts, each with its line of plain words; `page` places them."""

from collections.abc import Sequence
from html import escape
from statistics import median

from fewshard_loadtest.report import charts
from fewshard_loadtest.report.answers import Share
from fewshard_loadtest.report.charts import COLOURS, DASHES, Axis, Dot, Series
from fewshard_loadtest.report.figures import Figures, ModelFigures
from fewshard_loadtest.report.words import milliseconds, percent

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
    chart = charts.lines(
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
    chart = charts.lines(
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
    chart = charts.points(
        placed, pareto([(dot.x, dot.y) for dot in placed]), Axis(label), Axis("accuracy, %")
    )
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
        charts.grid(rows, mean),
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
    chart = charts.lines(waits, time, Axis("p99 latency, ms", is_log=True))
    rates = charts.lines(sent, time, Axis("predictions sent per second", low=0.0))
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
