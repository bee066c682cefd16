"""Price of a machine: the user's own price if given, else the list that ships with the package."""

from dataclasses import dataclass
from datetime import date
from functools import cache
from importlib.resources import as_file, files
from typing import Annotated

from pydantic import Field

from fewshard_core.yaml_reader import Section, read_yaml
from fewshard_loadtest.errors import ScenarioError
from fewshard_loadtest.scenario import PricePart


class ListedMachine(Section):
    """One entry of the price list."""

    name: str
    what: str
    per_hour: Annotated[float, Field(gt=0)]
    currency: str
    date: date
    source: str


class PriceList(Section):
    """The contents of the price file."""

    machines: tuple[ListedMachine, ...]


@dataclass(frozen=True, slots=True)
class Price:
    """Price of the machines that served.

    per_hour: price of one machine for an hour.
    currency: currency of the price.
    num_machines: number of machines.
    origin: source and date of the price.
    """

    per_hour: float
    currency: str
    num_machines: int
    origin: str


@cache
def listed() -> dict[str, ListedMachine]:
    """The listed machines by name."""
    with as_file(files("fewshard_loadtest.cost") / "prices.yaml") as path:
        return {machine.name: machine for machine in read_yaml(path, ScenarioError).parse(PriceList).machines}


def price_of(part: PricePart | None) -> Price | None:
    """The price for `part`; None without one, and then the report contains no costs.

    Raises `ScenarioError` for a machine that is not listed.
    """
    if part is None:
        return None
    if part.per_hour is not None:
        name = f" of {part.machine}" if part.machine else ""
        return Price(part.per_hour, str(part.currency), part.machines, f"your own price{name}")
    if part.machine is None:
        raise ScenarioError("`price` needs a `machine` of the list, or `per_hour` and `currency`")
    entry = listed().get(part.machine)
    if entry is None:
        known = ", ".join(listed())
        raise ScenarioError(
            f"no price is listed for {part.machine!r}; there are: {known}. Or give `per_hour` and `currency`"
        )
    origin = f"{entry.name} ({entry.what}), {entry.date}, {entry.source}"
    return Price(entry.per_hour, entry.currency, part.machines, origin)
