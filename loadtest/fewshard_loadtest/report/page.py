"""The report as one HTML file: no script, nothing fetched, readable on paper; `write` calls it."""

from collections.abc import Sequence
from html import escape
from statistics import median

import yaml

from fewshard_loadtest.report import charts, tables
from fewshard_loadtest.report.answers import Share
from fewshard_loadtest.report.charts import COLOURS, DASHES, Axis, Dot, Series
from fewshard_loadtest.report.figures import Figures, ModelFigures
from fewshard_loadtest.report.tables import Table
from fewshard_loadtest.report.verdict import break_even, verdicts, warnings
from fewshard_loadtest.report.words import milliseconds, percent

SAME_RATE = 1.03

STYLE = """
:root { color-scheme: light; }
body { font: 15px/1.5 "Helvetica Neue", Arial, "DejaVu Sans", sans-serif; color: #222; background: #fff;
  max-width: 980px; margin: 2em auto; padding: 0 1.5em; }
h1 { font-size: 1.5em; margin-bottom: .2em; } h2 { font-size: 1.15em; margin: 2em 0 .3em; }
h3 { font-size: 1em; margin: 1.2em 0 .2em; }
.verdict { font-size: 1.25em; line-height: 1.4; border-left: 5px solid #1f5fa8; padding: .3em 0 .3em .8em; }
.partial { border-left: 5px solid #a00; background: #fdf1f1; padding: .5em .8em; font-weight: 600; }
.note { color: #555; max-width: 75ch; margin: .3em 0 0; } .facts { color: #555; }
table { border-collapse: collapse; font-size: .84em; font-variant-numeric: tabular-nums; margin: .4em 0; }
th, td { padding: .28em .6em; text-align: right; border-bottom: 1px solid #e2e2e2; vertical-align: top; }
th { border-bottom: 1.5px solid #222; font-weight: 600; vertical-align: bottom; }
th:first-child, td:first-child, td.words, table.facts td { text-align: left; }
td:first-child { white-space: nowrap; }
tr.paper td { color: #777; border-bottom-color: #bbb; }
svg { display: block; max-width: 100%; height: auto; font-family: inherit; font-size: 12px; margin: .3em 0; }
code, pre { font: .86em ui-monospace, "DejaVu Sans Mono", monospace; }
pre { white-space: pre-wrap; overflow-wrap: anywhere; background: #f6f6f6; padding: .6em .8em; }
section { break-inside: avoid; }
@media print { body { margin: 0; max-width: none; padding: 0; font-size: 10pt; } svg { width: 88%; }
  h2 { margin-top: 1.2em; } section.long { break-inside: auto; }
  tr, svg { break-inside: avoid; } h2, h3 { break-after: avoid; } }
@page { size: A4; margin: 14mm; }
"""


def page(figures: Figures) -> str:
    """The whole file."""
    run = figures.run
    title = escape(str(run.scenario["name"]))
    partial = f'<p class="partial">Partial: {escape(run.partial)}.</p>' if run.partial else ""
    sentences = verdicts(figures)
    first = escape(sentences[0]) if sentences else "Nothing was measured."
    rest = "".join(f"<li>{escape(text)}</li>" for text in [*sentences[1:], *_break_evens(figures)])
    cautions = "".join(f"<li>{escape(text)}</li>" for text in warnings(figures))
    body = [
        f"<h1>What a prediction costs: {title}</h1>",
        f'<p class="facts">{escape(_facts(figures))}</p>',
        partial,
        f'<p class="verdict">{first}</p>',
        f"<ul>{rest}</ul>" if rest else "",
        f"<section><h2>Before you believe it</h2><ul>{cautions}</ul></section>",
        *(_table(table) for table in tables.every_table(figures)[:1]),
        *_charts(figures),
        *(_table(table) for table in tables.every_table(figures)[1:]),
        _environment(figures),
    ]
    head = f'<meta charset="utf-8"><meta name="viewport" content="width=device-width"><title>{title}</title>'
    head += f"<style>{STYLE}</style>"
    return f'<!doctype html>\n<html lang="en"><head>{head}</head><body>{"".join(body)}</body></html>\n'


def _facts(figures: Figures) -> str:
    run, scenario = figures.run, figures.run.scenario
    repeats = scenario["repeats"]
    price = f"{figures.price.origin}" if figures.price else "no price given"
    return (
        f"{run.machine['date']}, {run.machine['cores']} cores of {run.machine['cpu']}. "
        f"{repeats} {'repeat' if repeats == 1 else 'repeats'}, protocol {scenario['protocol']}, "
        f"{_payloads(figures)}. Price: {price}; utilisation {percent(figures.fleet.utilisation)}."
    )


def _payloads(figures: Figures) -> str:
    return " and ".join(
        f"{truth['items']:,} items of {truth['name']}" for truth in figures.run.truth.values()
    )


def _break_evens(figures: Figures) -> list[str]:
    return [text for model in figures.models if (text := break_even(figures, model))]


def _colours(figures: Figures) -> dict[str, tuple[str, str]]:
    return {
        model.name: (COLOURS[number % len(COLOURS)], DASHES[number % len(DASHES)])
        for number, model in enumerate(figures.models)
    }


def _charts(figures: Figures) -> list[str]:
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
    return _section(
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
    return _section(
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
    return _section(
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
    return _section(
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
    return _section(
        f"In the course of time: {kind}",
        chart + rates,
        "The slowest hundredth of each stretch above, the load below: what a change of load does, "
        "and how soon "
        "it is over.",
    )


def _table(table: Table) -> str:
    head = "".join(f"<th>{escape(cell)}</th>" for cell in table.header)
    rows = "".join(_row(row) for row in table.rows)
    body = f"<table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>"
    return _section(table.title, body, table.note, "long" if len(table.rows) > 12 else "")


def _row(row: Sequence[str]) -> str:
    kind = ' class="paper"' if row[0].startswith("  ") else ""
    cells = "".join(f"<td{_words(cell)}>{escape(cell.replace(' [', chr(10) + '['))}</td>" for cell in row)
    return f"<tr{kind}>{cells}</tr>".replace("\n[", "<br>[")


def _words(cell: str) -> str:
    return ' class="words"' if len(cell) > 24 else ""


def _section(title: str, body: str, note: str, kind: str = "") -> str:
    look = f' class="{kind}"' if kind else ""
    return f'<section{look}><h2>{escape(title)}</h2>{body}<p class="note">{escape(note)}</p></section>'


def _environment(figures: Figures) -> str:
    run = figures.run
    machine = "".join(f"<tr><td>{escape(k)}</td><td>{escape(v)}</td></tr>" for k, v in run.machine.items())
    models = "".join(
        f"<tr><td>{escape(name)}</td><td>{escape(str(config.get('dtype', '–')))} on "
        f"{escape(str(config.get('device', '–')))}, "
        f"{escape(str(config.get('card', {}).get('recipe', '–')))}, "
        f"commit {escape(str(config.get('card', {}).get('commit', '–')))}</td></tr>"
        for name, config in run.models.items()
    )
    given = {key: value for key, value in run.scenario.items() if value is not None}
    scenario = escape(yaml.safe_dump(given, sort_keys=False, default_flow_style=None, width=100))
    return (
        '<section class="long"><h2>How it was measured</h2>'
        f"<pre>{escape(run.command)}</pre><table class='facts'>{machine}{models}</table>"
        f"<h3>Scenario</h3><pre>{scenario}</pre>"
        f'<p class="note">{len(run.legs)} runs of the generator; the raw samples lie in samples/ beside '
        "run.json, and every figure here is computed from them. docs/reading-reports.md explains "
        "each, and the "
        "traps; docs/cost.md has the formulas.</p></section>"
    )
