"""Energy and cost of one model, from its runs and its sustained rate. Called by `figures`."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from fewshard_loadtest.cost import formulas
from fewshard_loadtest.cost.prices import Price
from fewshard_loadtest.report.latency import Point, strictest
from fewshard_loadtest.results_store import LoadRun
from fewshard_loadtest.scenario import EnergyPart, FleetPart, SloPart

SLO_FACTORS = (0.5, 1.0, 2.0)
PRICE_FACTORS = (0.5, 1.0, 2.0)


@dataclass(frozen=True, slots=True)
class Measured:
    """A mean over repeats with its 95 % interval; the interval is None with a single repeat."""

    mean: float
    low: float | None
    high: float | None
    values: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Energy:
    """Energy of predictions.

    joules: energy of one prediction.
    kwh_per_million, carbon_g_per_million: energy and CO2 of a million predictions.
    method: how it was measured or modelled.
    """

    joules: float
    kwh_per_million: float
    carbon_g_per_million: float
    method: str


@dataclass(frozen=True, slots=True)
class Money:
    """Cost of predictions, in the currency of the price.

    per_million: cost of a million predictions.
    low, high: its range, from the interval of the sustained rate.
    fleet: machines for the planned rate, and their cost.
    by_slo, by_price, by_batch: cost of a million with another SLO, price, or number of items per request.
    """

    per_million: float
    low: float | None
    high: float | None
    fleet: formulas.Fleet
    by_slo: dict[str, float | None]
    by_price: dict[str, float]
    by_batch: dict[str, float]


def energy_of(legs: Sequence[LoadRun], name: str, part: EnergyPart) -> Energy | None:
    """Energy per prediction over some runs; None if not even CPU time is known."""
    gpu = per_item(legs, lambda leg: leg.usage.gpu_joules, name)
    cpu = per_item(legs, lambda leg: leg.usage.joules, name)
    if cpu is not None or gpu is not None:
        joules = (cpu or 0.0) + (gpu or 0.0)
        what = " and ".join(
            name for name, value in (("the CPU package", cpu), ("the GPUs", gpu)) if value is not None
        )
        method = f"measured, {what} with the load generator"
    else:
        used = per_item(
            legs,
            lambda leg: (
                None
                if leg.usage.cpu_s is None
                else formulas.modelled_joules(leg.usage.cpu_s, part.core_w, part.idle_w, leg.usage.seconds)
            ),
            name,
        )
        if used is None:
            return None
        joules, method = used, f"modelled: {part.core_w:g} W a busy core, {part.idle_w:g} W idle"
    carbon = formulas.carbon_g_per_million(joules, part.carbon_g_per_kwh)
    return Energy(joules, formulas.kwh_per_million(joules), carbon, method)


def money_of(
    price: Price,
    fleet: FleetPart,
    slo: SloPart,
    sustained: Measured,
    batches: dict[int, float],
    curve: Sequence[Point],
) -> Money:
    """Cost of one model.

    batches: sustained rates by items per request.
    curve: runs from which rates for other SLOs are read.
    """

    def cost(rate: float | None, factor: float = 1.0) -> float | None:
        if not rate or rate <= 0:
            return None
        return formulas.per_million(factor * price.per_hour, rate, fleet.utilisation, price.num_machines)

    per_million = cost(sustained.mean)
    assert per_million is not None
    return Money(
        per_million=per_million,
        low=cost(sustained.high),
        high=cost(sustained.low),
        fleet=formulas.fleet(
            fleet.rate,
            sustained.mean / price.num_machines,
            price.per_hour,
            fleet.headroom,
            fleet.spare,
        ),
        by_slo={
            f"{factor * slo.p99_ms:g}": cost(strictest(curve, factor * slo.p99_ms, slo.max_errors))
            for factor in SLO_FACTORS
        },
        by_price={f"{factor:g}": factor * per_million for factor in PRICE_FACTORS},
        by_batch={str(items): value for items, rate in batches.items() if (value := cost(rate))},
    )


def per_item(legs: Sequence[LoadRun], value: Callable[[LoadRun], float | None], name: str) -> float | None:
    """The sum of `value` over some runs, divided by the items that the model processed in them."""
    values = [(value(leg), leg.counters[name].items) for leg in legs]
    there = [(amount, items) for amount, items in values if amount is not None]
    items = sum(items for _, items in there)
    return float(sum(amount for amount, _ in there)) / items if items else None
