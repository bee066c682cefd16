"""The report as one HTML file: no script, nothing fetched, readable on paper; `write` calls it."""

from collections.abc import Sequence
from html import escape

import yaml

from fewshard_loadtest.report import tables
from fewshard_loadtest.report.charts import every_chart, section
from fewshard_loadtest.report.figures import Figures
from fewshard_loadtest.report.format import percent
from fewshard_loadtest.report.tables import Table
from fewshard_loadtest.report.verdict import break_even, verdicts, warnings

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
td { white-space: nowrap; } td.words, table.facts td { white-space: normal; }
tr.paper td { color: #777; border-bottom-color: #bbb; }
svg { display: block; max-width: 100%; height: auto; font-family: inherit; font-size: 12px; margin: .3em 0; }
code, pre { font: .86em ui-monospace, "DejaVu Sans Mono", monospace; }
pre { white-space: pre-wrap; overflow-wrap: anywhere; background: #f6f6f6; padding: .6em .8em; }
section { break-inside: avoid; }
@media print { body { margin: 0; max-width: none; padding: 0; font-size: 10pt; } svg { width: 88%; }
  th, td { padding: .28em .4em; } h2 { margin-top: 1.2em; } section.long { break-inside: auto; }
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
        *every_chart(figures),
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


def _table(table: Table) -> str:
    head = "".join(f"<th>{escape(cell)}</th>" for cell in table.header)
    rows = "".join(_row(row) for row in table.rows)
    body = f"<table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>"
    return section(table.title, body, table.note, "long" if len(table.rows) > 12 else "")


def _row(row: Sequence[str]) -> str:
    kind = ' class="paper"' if row[0].startswith("  ") else ""
    cells = "".join(f"<td{_words(cell)}>{escape(cell.replace(' [', chr(10) + '['))}</td>" for cell in row)
    return f"<tr{kind}>{cells}</tr>".replace("\n[", "<br>[")


def _words(cell: str) -> str:
    return ' class="words"' if len(cell) > 24 else ""


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
