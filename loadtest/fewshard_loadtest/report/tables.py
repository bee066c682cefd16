"""The report's tables as rows of text, for HTML, Markdown and CSV."""

from collections.abc import Sequence
from dataclasses import dataclass

from fewshard_core.paper import TABLE_II
from fewshard_loadtest.report.costs import Measured, Money
from fewshard_loadtest.report.figures import Figures, ModelFigures
from fewshard_loadtest.report.format import count, interval, milliseconds, money, percent, ratio


@dataclass(frozen=True, slots=True)
class Table:
    """A table; `note`: a line that explains its figures."""

    title: str
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    note: str


def served(figures: Figures) -> Table:
    """Throughput, latency and cost of each model at the SLO."""
    currency = figures.price.currency if figures.price else ""
    rows = [
        (
            model.name,
            _measured(model.sustained),
            _measured(model.saturated),
            milliseconds(model.alone.p50_ms if model.alone else None),
            milliseconds(model.at_slo.p99_ms if model.at_slo else None),
            milliseconds(model.cpu_ms),
            count(model.memory_mib),
            money(model.money.per_million if model.money else None, currency),
        )
        for model in figures.models
    ]
    slo = f"{figures.slo.p99_ms:g} ms p99, at most {percent(figures.slo.max_errors, 1)} errors"
    return Table(
        "Load and cost",
        (
            "model",
            "within SLO, /s",
            "saturated, /s",
            "alone p50, ms",
            "at SLO p99, ms",
            "CPU, ms each",
            "server, MiB",
            "a million",
        ),
        tuple(rows),
        f"Predictions per second within the SLO ({slo}) and with every user waiting for an answer; in "
        "brackets the 95 % interval over repeats. CPU is all of the server's processes for one prediction, "
        "memory that of the whole server with all its models.",
    )


def paper(figures: Figures) -> Table:
    """Measured values in the columns of the paper's Table II, with the paper's figures below each row."""
    rows: list[tuple[str, ...]] = []
    for model in figures.models:
        rows.append(_measured_row(model))
        known = TABLE_II.get(model.name)
        if known:
            rows.append(
                (
                    "  the paper's",
                    f"{known.accuracy:.1f} %",
                    "–",
                    count(known.parameters),
                    "–",
                    count(known.macs),
                    f"{known.ms:g}",
                    "–",
                    "–",
                )
            )
    return Table(
        "Table II, measured",
        (
            "model",
            "accuracy",
            "95 % interval",
            "parameters",
            "active",
            "MACs",
            "alone p50, ms",
            "R, model",
            "R, server",
        ),
        tuple(rows),
        "The paper's figures are of its own models and hardware; its FLOPs are multiply-accumulates (MACs). "
        "R is the share of the promised saving that came true: measured speed-up over the reduction of MACs.",
    )


def _measured_row(model: ModelFigures) -> tuple[str, ...]:
    accuracy, real = model.accuracy, model.realised
    low, high = accuracy.share.interval if accuracy else (None, None)
    return (
        model.name,
        percent(accuracy.share.value if accuracy else None, 1),
        "–" if accuracy is None else f"{percent(low, 1)} to {percent(high, 1)}",
        count(model.card.get("parameters_total")),
        count(model.card.get("parameters_active")),
        count(model.card.get("macs")),
        milliseconds(model.alone.p50_ms if model.alone else None),
        ratio(real.model if real else None),
        ratio(real.server if real else None),
    )


def realised(figures: Figures) -> Table:
    """Promised and realised speed-ups, and the overhead between them."""
    rows = [
        (
            model.name,
            f"{1 / real.macs_ratio:.2f}x",
            _times(real.model_speedup),
            ratio(real.model),
            _times(real.server_speedup),
            ratio(real.server),
            percent(real.overhead_share),
            _times(real.expected_speedup),
        )
        for model in figures.models
        if (real := model.realised)
    ]
    return Table(
        "Promised and realised",
        (
            "model",
            "promised",
            "model alone",
            "R",
            "at the server",
            "R",
            "overhead",
            "then expected",
        ),
        tuple(rows),
        "Speed-ups against the dense model: promised by MACs, of the model's own time for one prediction, "
        "and of the load that the server bears. Overhead is the share of the saturated dense server's time "
        "in which the model does not run; were all of it to stay, the server would be as much faster as the "
        "last column says.",
    )


def energy(figures: Figures) -> Table:
    """Energy and carbon per prediction."""
    rows = [
        (
            model.name,
            f"{own.joules:.3g}",
            f"{own.kwh_per_million:.3g}",
            f"{own.carbon_g_per_million:.3g}",
            own.method,
        )
        for model in figures.models
        if (own := model.energy)
    ]
    factor = f"{figures.energy.carbon_g_per_kwh:g} g CO2 a kWh ({figures.energy.carbon_source})"
    return Table(
        "Energy",
        ("model", "J each", "kWh a million", "g CO2 a million", "how"),
        tuple(rows),
        f"Carbon at {factor}. A modelled figure follows processor time and says nothing that CPU time does "
        "not say.",
    )


def fleets(figures: Figures) -> Table:
    """Machines for the planned rate, and their cost."""
    part, price = figures.fleet, figures.price
    batches = any(model.money and len(model.money.by_batch) > 1 for model in figures.models)
    rows = [
        (
            model.name,
            str(own.fleet.machines),
            money(own.fleet.per_month, price.currency),
            money(own.fleet.per_million, price.currency),
            *(money(value, price.currency) for value in own.by_slo.values()),
            *(money(value, price.currency) for value in own.by_price.values()),
            *([_by_batch(own, price.currency)] if batches else []),
        )
        for model in figures.models
        if price and (own := model.money)
    ]
    slos = [f"p99 {factor}" for factor in ("half", "as set", "double")]
    prices = [f"price {factor}" for factor in ("half", "as set", "double")]
    return Table(
        f"A fleet for {count(part.rate)} predictions/s",
        ("model", "machines", "a month", "a million", *slos, *prices, *(["by items a request"] * batches)),
        tuple(rows),
        f"With {percent(part.headroom)} headroom and {part.spare} spare, busy or not. To the right, what a "
        f"million costs at {percent(part.utilisation)} utilisation if the SLO or the price were another: "
        "only rates that were measured count, so an empty cell says that none was measured there.",
    )


def _by_batch(own: Money, currency: str) -> str:
    return ", ".join(f"{items}: {money(value, currency)}" for items, value in own.by_batch.items())


def classes(figures: Figures) -> Table:
    """Accuracy by true class, compared with the dense model."""
    rows = []
    for model in figures.models:
        dense = figures.model(model.dense)
        for name, share in (model.accuracy.by_class if model.accuracy else {}).items():
            base = dense.accuracy.by_class.get(name) if dense and dense.accuracy else None
            change = (
                "–"
                if base is None or base.value is None or share.value is None
                else f"{100 * (share.value - base.value):+.1f}"
            )
            low, high = share.interval
            rows.append(
                (
                    model.name,
                    name,
                    f"{share.num:,}",
                    percent(share.value, 1),
                    f"{percent(low, 1)} to {percent(high, 1)}",
                    change,
                )
            )
    return Table(
        "Accuracy by class",
        ("model", "class", "items", "accuracy", "95 % interval", "points against dense"),
        tuple(rows),
        "A model may lose little on average and much for one class; intervals of few items are wide.",
    )


def flips(figures: Figures) -> Table:
    """The paired test against the dense model."""
    rows = [
        (
            model.name,
            str(model.dense),
            f"{pair.num:,}",
            f"{pair.flips:,}",
            f"{pair.only_dense:,}",
            f"{pair.only_this:,}",
            f"{pair.p:.2g}",
        )
        for model in figures.models
        if model.accuracy and (pair := model.accuracy.paired)
    ]
    return Table(
        "The same items, two models",
        ("model", "dense", "items", "other label", "only dense right", "only this right", "McNemar p"),
        tuple(rows),
        "On items that both answered. p is how often chance alone would part two equally good models so far; "
        "below 0.05 counts as more than chance.",
    )


def as_markdown(table: Table) -> str:
    """The table in Markdown, with title and note."""
    lines = [table.header, ("---",) * len(table.header), *table.rows]
    body = "\n".join(f"| {' | '.join(cell.replace('|', '/') for cell in line)} |" for line in lines)
    return f"### {table.title}\n\n{body}\n\n{table.note}"


def _measured(value: Measured | None) -> str:
    return "–" if value is None else f"{count(value.mean)}{interval(value.low, value.high)}"


def _times(value: float | None) -> str:
    return "–" if value is None else f"{value:.2f}x"


def every_table(figures: Figures) -> Sequence[Table]:
    """All tables in the report's order; tables without rows are left out."""
    made = (served, paper, realised, fleets, energy, flips, classes)
    return [table for make in made if (table := make(figures)).rows]
