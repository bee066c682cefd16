"""What a scenario file may say, and how mistakes in it are told."""

import re
from pathlib import Path

import pytest

from fewshard_core.yaml_reader import read_yaml
from fewshard_loadtest.cost.prices import listed, price_of
from fewshard_loadtest.errors import ScenarioError
from fewshard_loadtest.report.compare import Budget
from fewshard_loadtest.scenario import (
    Closed,
    Diurnal,
    Mixed,
    Open,
    PricePart,
    Scenario,
    Search,
    ServerPart,
    Soak,
    Spike,
    Steps,
    load_scenario,
)

GOOD = """
name: a
models: [x, y]
server: {url: "http://h"}
loads:
  - {kind: search, precision: 0.05}
  - {kind: open, rates: [0.5, 1.0], relative: true}
"""


def scenario_file(tmp_path: Path, text: str) -> Path:
    file = tmp_path / "s.yaml"
    file.write_text(text, encoding="utf-8")
    return file


def test_a_scenario_is_read(tmp_path: Path) -> None:
    scenario = load_scenario(scenario_file(tmp_path, GOOD))
    assert scenario.models == ("x", "y")
    assert isinstance(scenario.loads[0], Search)
    assert scenario.slo.p99_ms == 50
    assert scenario.about_seconds() > 60
    assert load_scenario(scenario_file(tmp_path, GOOD), ["y"]).models == ("y",)


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        (
            "precision",
            "precison",
            r"s\.yaml, line 6: unknown key 'precison' in loads\[0\]; did you mean 'precision'",
        ),
        ("models: [x, y]", "models: []", r"line 3: models: .*at least 1 item"),
        ("models: [x, y]", "models: [x, x]", "named twice"),
        ("kind: search", "kind: serch", r"line 6: .*'closed', 'open', 'search'"),
        ("- {kind: search, precision: 0.05}", "", "`relative` rates of 'open' need a `search` before"),
        ("[0.5, 1.0]", "[0.5, -1]", r"line 7: .*greater than 0 \(given: -1\)"),
        ("url:", "config: c.yaml, url:", "give one of the two"),
        ('url: "http://h"', "config: none.yaml", r"names .*none\.yaml, and there is no such file"),
        ("name: a", "", "the file lacks the key 'name'"),
        ("name: a", "name: [", "not valid YAML"),
        ("name: a", "name: a\nslo: {p99_ms: 0}", r"slo\.p99_ms: .*greater than 0"),
        ("name: a", "name: a\nprice: {per_hour: 0, currency: USD}", "makes everything free"),
        ("name: a", "name: a\nprice: {per_hour: 1}", "needs its `currency`"),
        ("- {kind: search, precision: 0.05}", "- {kind: mixed, rate: 1, shares: {x: 1, z: 1}}", "names 'z'"),
        (
            "- {kind: search, precision: 0.05}",
            "- {kind: spike, base: 1, peak: 2, every_s: 20}",
            "spike_s < every_s <= duration_s",
        ),
    ],
)
def test_a_mistake_is_told_with_its_line(tmp_path: Path, old: str, new: str, words: str) -> None:
    assert old in GOOD
    with pytest.raises(ScenarioError, match=words):
        load_scenario(scenario_file(tmp_path, GOOD.replace(old, new)))


def test_an_unknown_model_is_named_with_those_there_are(tmp_path: Path) -> None:
    with pytest.raises(ScenarioError, match="'z' is not among its models; there are: x, y"):
        load_scenario(scenario_file(tmp_path, GOOD), ["z"])


def test_the_price_list_has_dates_and_sources() -> None:
    assert len(listed()) >= 5
    assert all(entry.source and entry.date.year >= 2024 for entry in listed().values())
    price = price_of(PricePart(machine="c7i.large", machines=2))
    assert price is not None
    assert (price.per_hour, price.currency, price.num_machines) == (0.08925, "USD", 2)
    assert "2024-08-26" in price.origin


def test_a_price_of_ones_own_goes_first() -> None:
    price = price_of(PricePart(machine="c7i.large", per_hour=0.5, currency="EUR"))
    assert price is not None
    assert (price.per_hour, price.currency, price.origin) == (0.5, "EUR", "your own price of c7i.large")


def test_a_machine_that_is_not_listed_is_an_error() -> None:
    with pytest.raises(ScenarioError, match=r"no price is listed for 'abacus'; there are: c7i\.large"):
        price_of(PricePart(machine="abacus"))
    with pytest.raises(ScenarioError, match="needs a `machine`"):
        price_of(PricePart())
    assert price_of(None) is None


ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("file", sorted((ROOT / "benchmarks/scenarios").glob("*.yaml")), ids=lambda f: f.name)
def test_the_scenarios_that_ship_are_right(file: Path) -> None:
    assert load_scenario(file).loads


def test_the_documented_scenario_and_budget_are_right(tmp_path: Path) -> None:
    text = (ROOT / "docs/load-tests.md").read_text()
    scenario, budget = re.findall(r"```yml\n(.*?)```", text, re.DOTALL)
    (tmp_path / "fewshard.yaml").write_text("models: []\n")
    assert load_scenario(scenario_file(tmp_path, scenario)).price is not None
    (tmp_path / "budget.yaml").write_text(budget)
    assert read_yaml(tmp_path / "budget.yaml", ScenarioError).parse(Budget).models["sst2-moe"].cpu == 0.1


def test_every_key_of_a_scenario_is_documented() -> None:
    text = (ROOT / "docs/load-tests.md").read_text()
    loads = (Closed, Open, Search, Steps, Spike, Diurnal, Soak, Mixed)
    keys = {key for section in (Scenario, ServerPart, *loads) for key in section.model_fields}
    assert {
        key for key in keys if f"`{key}`" not in text and f"`{key}:" not in text and f"{key}:" not in text
    } == set()
