"""The formulas, and the worked example of docs/cost.md recomputed."""

import math
import re
from pathlib import Path

import pytest

from fewshard_loadtest.cost import formulas

DOCUMENT = Path(__file__).parents[2] / "docs/cost.md"


def test_the_worked_example_is_what_the_formulas_give() -> None:
    """Every line `name = number unit` of the example, in its own digits."""
    (block,) = re.findall(r"```text\n(.*?)```", DOCUMENT.read_text(), re.DOTALL)
    stated = dict(re.findall(r"^(\w+) += ([\d.,]+)", block, re.MULTILINE))
    given = {name: float(value.replace(",", "")) for name, value in stated.items()}
    price, dense, sparse = given["price_per_hour"], given["rate_dense"], given["rate_sparse"]
    joules = formulas.modelled_joules(given["cpu_s"], given["core_w"], given["idle_w"], given["seconds"])
    fleets = [
        formulas.fleet(given["wished_rate"], rate, price, given["headroom"], int(given["spare"]))
        for rate in (dense, sparse)
    ]
    even = formulas.break_even_rate(dense, price, sparse, price, given["headroom"], int(given["spare"]))
    assert even is not None
    costs = [formulas.per_million(price, rate, given["utilisation"]) for rate in (dense, sparse)]
    paid = formulas.break_even_predictions(given["one_off"], *costs)
    assert paid is not None
    expected = {
        "per_million_dense": costs[0],
        "per_million_sparse": costs[1],
        "joules_each": joules / given["predictions"],
        "kwh_per_million": formulas.kwh_per_million(joules / given["predictions"]),
        "carbon_g_per_million": formulas.carbon_g_per_million(
            joules / given["predictions"], given["carbon_g_per_kwh"]
        ),
        "machines_dense": fleets[0].machines,
        "machines_sparse": fleets[1].machines,
        "per_month_dense": fleets[0].per_month,
        "per_month_sparse": fleets[1].per_month,
        "break_even_rate": even,
        "break_even_predictions": paid,
        "r_model": formulas.realised(given["model_speedup"], given["macs_dense"], given["macs_sparse"]),
        "server_speedup": formulas.amdahl(given["model_speedup"], given["overhead_share"]),
    }
    for name, value in expected.items():
        digits = len(stated[name].replace(",", "").partition(".")[2])
        assert round(value, digits) == given[name], name
    assert set(expected) < set(stated)


def test_a_million_at_one_a_second() -> None:
    assert formulas.per_million(3.6, 1.0) == pytest.approx(1000)
    assert formulas.per_million(3.6, 2.0, utilisation=0.5, num_machines=3) == pytest.approx(3000)


@pytest.mark.parametrize("rate", [0.0, -1.0, math.nan])
def test_a_rate_must_be_above_zero(rate: float) -> None:
    with pytest.raises(ValueError, match="rate_at_slo must be above 0"):
        formulas.per_million(1.0, rate)


@pytest.mark.parametrize(
    ("wished", "rate", "headroom", "spare", "machines"),
    [(100, 100, 0.0, 0, 1), (100, 100, 0.3, 1, 3), (101, 100, 0.0, 0, 2), (1, 1000, 0.3, 1, 2)],
)
def test_machines_are_whole(wished: float, rate: float, headroom: float, spare: int, machines: int) -> None:
    assert formulas.fleet_machines(wished, rate, headroom, spare) == machines


def test_break_even_lies_where_the_fleets_cross() -> None:
    """Found again by trying every rate."""
    rates, prices = (100.0, 230.0), (1.0, 1.7)
    even = formulas.break_even_rate(rates[0], prices[0], rates[1], prices[1])
    assert even is not None

    def costs(wished: float) -> list[float]:
        return [
            price * formulas.fleet_machines(wished, rate, 0.3, 1)
            for rate, price in zip(rates, prices, strict=True)
        ]

    wished = [0.5 * step for step in range(1, 20_000)]
    dearer = [w for w in wished if costs(w)[1] > costs(w)[0]]
    assert max(dearer) == pytest.approx(even, abs=1.0)


def test_break_even_at_once_and_never() -> None:
    assert formulas.break_even_rate(100, 1.0, 200, 1.0) == 0
    assert formulas.break_even_rate(200, 1.0, 100, 1.0) is None
    assert formulas.break_even_predictions(10.0, 1.0, 1.0) is None


def test_overhead_eats_a_speedup() -> None:
    assert formulas.amdahl(2.0, 0.0) == 2.0
    assert formulas.amdahl(1000.0, 0.5) == pytest.approx(2.0, rel=0.01)
    assert formulas.realised(2.0, 100, 40) == pytest.approx(0.8)
