"""The price of a machine: the user's own first, then the list that ships with the package."""

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
    """One entry of the list."""

    name: str
    what: str
    per_hour: Annotated[float, Field(gt=0)]
    currency: str
    date: date
    source: str


class PriceList(Section):
    """The whole file."""

    machines: tuple[ListedMachine, ...]


@dataclass(frozen=True, slots=True)
class Price:
    """Of one machine for an hour, and how many of them served. `origin` says whose price it is, and when."""

    per_hour: float
    currency: str
    num_machines: int
    origin: str


@cache
def listed() -> dict[str, ListedMachine]:
    """The list by name."""
    with as_file(files("fewshard_loadtest.cost") / "prices.yaml") as path:
        return {machine.name: machine for machine in read_yaml(path, ScenarioError).parse(PriceList).machines}


def price_of(part: PricePart | None) -> Price | None:
    """None where no price is given: then nothing is said of money.

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
