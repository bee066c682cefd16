"""The report as one printable HTML file without scripts or external resources. Called by `output`."""

import yaml

from fewshard_loadtest.report.charts import every_chart
from fewshard_loadtest.report.figures import Figures
from fewshard_loadtest.report.format import percent
from fewshard_loadtest.report.tables import every_table
from fewshard_loadtest.report.verdict import break_even, verdicts, warnings

TEMPLATE = "page.html.jinja"


def page(figures: Figures) -> str:
    """The whole page, rendered from the template beside this module."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("fewshard_loadtest", "report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    return environment.get_template(TEMPLATE).render(
        title=figures.run.scenario["name"],
        facts=_facts(figures),
        run=figures.run,
        sentences=[*(verdicts(figures) or ["Nothing was measured."]), *_break_evens(figures)],
        cautions=warnings(figures),
        tables=every_table(figures),
        charts=every_chart(figures),
        scenario=_scenario(figures),
    )


def _facts(figures: Figures) -> str:
    run, scenario = figures.run, figures.run.scenario
    repeats = scenario["repeats"]
    price = figures.price.origin if figures.price else "no price given"
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


def _scenario(figures: Figures) -> str:
    given = {key: value for key, value in figures.run.scenario.items() if value is not None}
    return str(yaml.safe_dump(given, sort_keys=False, default_flow_style=None, width=100))
