"""Conclusions of the report in plain sentences; the first one opens the report."""

import math

from fewshard_loadtest.cost import formulas
from fewshard_loadtest.report.costs import Measured
from fewshard_loadtest.report.figures import Figures, ModelFigures
from fewshard_loadtest.report.format import count, money, percent
from fewshard_loadtest.report.statistics import mean_interval

CHANCE = 0.05
SAME_LOAD = 0.05


def verdicts(figures: Figures) -> list[str]:
    """One sentence per model, compared with the dense model of its task, or its own rate without one."""
    compared = [model for model in figures.models if figures.model(model.dense)]
    sentences = [_beside(figures, model) for model in compared]
    named = {model.dense for model in compared} | {model.name for model in compared}
    lone = [_alone(figures, model) for model in figures.models if model.name not in named]
    return [*sentences, *lone]


def _beside(figures: Figures, model: ModelFigures) -> str:
    dense = figures.model(model.dense)
    assert dense is not None
    within = f"within {figures.slo.p99_ms:g} ms p99"
    if model.sustained is None or dense.sustained is None:
        return _not_searched(figures, model, dense)
    load = _load(model, dense, within)
    limited = " (measure again: the generator was the limit)" if model.is_limited or dense.is_limited else ""
    return f"{load}{_accuracy(model, dense)}{_price(figures, model, dense)}{limited}."


def _searched(figures: Figures) -> set[str]:
    """The models for which a rate within the SLO was looked for."""
    return {name for rates in figures.run.sustained.values() for name in rates}


def _not_searched(figures: Figures, model: ModelFigures, dense: ModelFigures) -> str:
    unmet = [each.name for each in (dense, model) if each.sustained is None]
    if _searched(figures) >= set(unmet):
        names = " and ".join(unmet)
        return f"{names} cannot keep {figures.slo.p99_ms:g} ms p99 at any rate{_accuracy(model, dense)}."
    if model.saturated and dense.saturated:
        ratio = model.saturated.mean / dense.saturated.mean
        return (
            f"{model.name} gets through {ratio:.2f}x the load of {dense.name} when both are saturated"
            f"{_accuracy(model, dense)}; no rate within the SLO was looked for."
        )
    return f"{model.name} and {dense.name} were not measured to the end{_accuracy(model, dense)}."


def _load(model: ModelFigures, dense: ModelFigures, within: str) -> str:
    assert model.sustained is not None
    assert dense.sustained is not None
    ratio = model.sustained.mean / dense.sustained.mean
    if abs(ratio - 1) < SAME_LOAD:
        return f"{model.name} and {dense.name} serve the same load {within}"
    if not _is_sure(model.sustained, dense.sustained):
        return (
            f"{model.name} and {dense.name} cannot be told apart by the load they serve {within} "
            f"({ratio:.2f}x, but repeats differ too much)"
        )
    times = f"{ratio:.1f}x" if ratio > 1 else f"only {ratio:.2f}x"
    return f"{model.name} serves {times} the load of {dense.name} {within}"


def _is_sure(a: Measured, b: Measured) -> bool:
    """Whether the 95 % interval of the ratio of two rates excludes 1.

    Rates are paired by repeat, since all models of a repeat get the same arrivals. A single repeat has no
    interval and counts as sure; `warnings` mentions it.
    """
    if len(a.values) != len(b.values):
        return False
    logs = [math.log(x / y) for x, y in zip(a.values, b.values, strict=True)]
    _, low, high = mean_interval(logs)
    return low is None or high is None or low > 0 or high < 0


def _accuracy(model: ModelFigures, dense: ModelFigures) -> str:
    accuracy = model.accuracy
    if accuracy is None or dense.accuracy is None or accuracy.paired is None or not accuracy.paired.num:
        return ", accuracy unknown"
    pair = accuracy.paired
    points = 100 * (pair.only_this - pair.only_dense) / pair.num
    sure = "" if pair.p < CHANCE else f", which chance explains on {pair.num:,} items"
    if abs(points) < 0.05:
        return " at the same accuracy"
    return f" at {abs(points):.1f} points {'higher' if points > 0 else 'lower'} accuracy{sure}"


def _price(figures: Figures, model: ModelFigures, dense: ModelFigures) -> str:
    if figures.price is None or model.money is None or dense.money is None:
        return ""
    currency = figures.price.currency
    own, theirs = money(model.money.per_million, currency), money(dense.money.per_million, currency)
    return f": {own} against {theirs} a million"


def _alone(figures: Figures, model: ModelFigures) -> str:
    if model.sustained is None and model.name in _searched(figures):
        return f"{model.name} has no rate within {figures.slo.p99_ms:g} ms p99."
    if model.sustained is None:
        return f"{model.name} was measured; no rate within the SLO was looked for."
    cost = ""
    if figures.price is not None and model.money is not None:
        cost = f", at {money(model.money.per_million, figures.price.currency)} a million"
    rate = count(model.sustained.mean)
    return f"{model.name} serves {rate} predictions/s within {figures.slo.p99_ms:g} ms p99{cost}."


def warnings(figures: Figures) -> list[str]:
    """Caveats to read before the figures."""
    found = []
    if figures.run.partial:
        found.append(f"This report is partial: {figures.run.partial}.")
    for model in figures.models:
        found += _warnings_of(model)
    busiest = max((leg.result.generator_cpu for leg in figures.run.legs), default=0.0)
    found.append(f"The load generator used up to {percent(busiest)} of one core on the same machine.")
    found += _ceiling(figures)
    if figures.run.scenario["repeats"] < 3:
        found.append("Fewer than three repeats: the intervals are wide, or missing.")
    return found


def _warnings_of(model: ModelFigures) -> list[str]:
    found = []
    if model.is_limited:
        found.append(f"The generator was the limit for {model.name}: the server may sustain more than shown.")
    if model.no_accuracy:
        found.append(f"{model.name}: {model.no_accuracy}.")
    if model.accuracy is not None and model.accuracy.changed:
        found.append(
            f"{model.name} gave {model.accuracy.changed} of {model.accuracy.share.num:,} items "
            "another label later in the run."
        )
    if model.errors:
        worst = max(model.errors, key=lambda error: model.errors[error])
        total = sum(model.errors.values())
        found.append(
            f"{model.name} failed {total:,} of {model.num_requests:,} requests; most often: {worst}."
        )
    return found


def _ceiling(figures: Figures) -> list[str]:
    ceiling = figures.run.generator_ceiling
    rates = [model.sustained.mean for model in figures.models if model.sustained]
    if ceiling is None or not rates:
        return []
    generators = figures.run.scenario["generators"]
    factor = generators * ceiling / max(rates)
    return [
        f"From a server that does nothing the load generator gets {count(generators * ceiling)} answers/s, "
        f"{factor:.1f}x the fastest model's rate."
    ]


def break_even(figures: Figures, model: ModelFigures) -> str:
    """The rate above which, and number of predictions after which, the model is cheaper than the dense one.

    Empty if the repeats do not decide it.
    """
    dense = figures.model(model.dense)
    if dense is None or figures.price is None or not model.money or not dense.money:
        return ""
    assert model.sustained is not None
    assert dense.sustained is not None
    if not _is_sure(model.sustained, dense.sustained):
        return ""
    price, fleet = figures.price, figures.fleet
    rates = [each.sustained.mean / price.num_machines for each in (dense, model) if each.sustained]
    rate = formulas.break_even_rate(
        rates[0], price.per_hour, rates[1], price.per_hour, fleet.headroom, fleet.spare
    )
    if rate is None:
        return f"{model.name} is cheaper than {dense.name} at no rate."
    where = "at any rate" if rate == 0 else f"from {count(rate)} predictions/s on, always"
    text = f"{model.name} costs no more than {dense.name} {where}."
    if fleet.one_off:
        needed = formulas.break_even_predictions(
            fleet.one_off, dense.money.per_million, model.money.per_million
        )
        if needed is not None:
            spent = money(fleet.one_off, price.currency)
            text += f" It has earned the {spent} of its making after {count(needed)} predictions."
    return text
