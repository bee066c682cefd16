"""Statistics, the front, charts and the comparison, each by itself."""

import json
import math
from pathlib import Path
from statistics import fmean, stdev
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from fewshard_loadtest.errors import ScenarioError
from fewshard_loadtest.measure import nearest_rank
from fewshard_loadtest.report import format, verdict
from fewshard_loadtest.report.answers import Answers, accuracy, by_class, in_terms_of, mismatch, paired
from fewshard_loadtest.report.charts import pareto
from fewshard_loadtest.report.compare import compare
from fewshard_loadtest.report.costs import Measured
from fewshard_loadtest.report.statistics import mcnemar, mean_interval, wilson


def test_intervals() -> None:
    assert mean_interval([5.0]) == (5.0, None, None)
    mean, low, high = mean_interval([9.0, 10.0, 11.0])
    assert (mean, low, high) == pytest.approx(
        (10.0, 10 - 4.302653 / math.sqrt(3), 10 + 4.302653 / math.sqrt(3))
    )
    assert mean_interval([1.0, 2.0])[2] == pytest.approx(1.5 + 12.7062 / 2, abs=1e-4)
    low, high = wilson(90, 100)
    assert (low, high) == pytest.approx((0.8256, 0.9448), abs=1e-4)
    assert wilson(0, 0) == (0.0, 1.0)
    assert wilson(10, 10)[1] == 1.0
    assert wilson(0, 10)[0] == 0.0


@pytest.mark.parametrize(("num", "t"), [(3, 4.3027), (11, 2.2281), (12, 2.2010), (31, 2.0423), (121, 1.9799)])
def test_an_interval_of_many_repeats_is_as_wide_as_the_table_of_t_says(num: int, t: float) -> None:
    """Published values of t, two-sided 95 %, at num - 1 degrees of freedom."""
    values = [float(n) for n in range(num)]
    mean, low, high = mean_interval(values)
    assert low is not None
    assert high is not None
    half = t * stdev(values) / math.sqrt(num)
    assert (mean - low, high - mean) == pytest.approx((half, half), rel=1e-4)


@pytest.mark.parametrize(
    ("own", "begins"),
    [
        ([200.0, 204.0, 198.0], "moe serves 2.0x the load of dense within 50 ms p99"),
        ([50.0, 51.0, 50.0], "moe serves only 0.50x the load of dense within 50 ms p99"),
        ([102.0, 103.0, 101.0], "moe and dense serve the same load within 50 ms p99"),
        (
            [60.0, 220.0, 110.0],
            "moe and dense cannot be told apart by the load they serve",
        ),
    ],
)
def test_a_verdict_claims_what_the_repeats_show(own: list[float], begins: str) -> None:
    dense, moe = (
        SimpleNamespace(name=name, sustained=Measured(fmean(rates), None, None, tuple(rates)))
        for name, rates in (("dense", [100.0, 101.0, 99.0]), ("moe", own))
    )
    assert verdict._load(moe, dense, "within 50 ms p99").startswith(begins)


def test_intervals_hold_their_truth() -> None:
    rng = np.random.default_rng(1)
    inside = 0
    for right in rng.binomial(200, 0.9, 2000):
        low, high = wilson(int(right), 200)
        inside += low <= 0.9 <= high
    assert inside / 2000 == pytest.approx(0.95, abs=0.02)


def test_mcnemar_is_the_binomial_test() -> None:
    assert mcnemar(0, 0) == 1.0
    assert mcnemar(5, 5) == 1.0
    assert mcnemar(1, 9) == pytest.approx(2 * 11 / 1024)
    assert mcnemar(900, 1100) == pytest.approx(8.457090e-6, rel=1e-6)


@pytest.mark.parametrize("share", [0.0, 0.29, 0.5, 0.95, 0.99, 1.0])
def test_nearest_rank_is_numpys_inverted_cdf(share: float) -> None:
    for num in (1, 7, 100, 101):
        values = np.sort(np.random.default_rng(num).random(num))
        assert nearest_rank(values, share) == np.percentile(values, 100 * share, method="inverted_cdf")
    assert nearest_rank([], 0.5) is None


def test_nearest_rank_is_not_led_astray_by_rounding() -> None:
    """0.14 * 50 is 7.000000000000001 in floats; seven of fifty values are 14 %."""
    assert nearest_rank([float(n) for n in range(1, 51)], 0.14) == 7.0


def test_answers_beside_the_truth() -> None:
    truth = ["pos", "neg", "pos", "neg"]
    dense = Answers({0: "POS", 1: "neg", 2: "pos", 3: "neg"}, 0)
    this = Answers({0: "neg", 1: "neg", 3: "pos"}, 0)
    share = accuracy(this, truth)
    assert share is not None
    assert (share.num, share.right) == (3, 1)
    assert {name: (one.num, one.right) for name, one in by_class(this, truth).items()} == {
        "neg": (2, 1),
        "pos": (1, 0),
    }
    pair = paired(this, dense, truth)
    assert (pair.num, pair.flips, pair.only_dense, pair.only_this) == (3, 2, 2, 0)
    assert accuracy(Answers({0: "LABEL_0"}, 0), truth) is None, "other names are no wrong answers"
    assert accuracy(this, []) is None


NAMED, UNNAMED = ["negative", "positive"], ["LABEL_0", "LABEL_1"]


@pytest.mark.parametrize(
    ("names", "labels", "expected"),
    [
        (["0", "1"], NAMED, NAMED),
        (["LABEL_0", "label_1"], NAMED, NAMED),
        (["0", "1"], UNNAMED, UNNAMED),
        (["Negative", "positive"], NAMED, ["Negative", "positive"]),
        (["1", "0"], ["0", "1"], ["1", "0"]),
        (["1", "2"], NAMED, ["1", "2"]),
        (["0", "other"], NAMED, ["0", "other"]),
        (["0", "1"], [], ["0", "1"]),
    ],
)
def test_numbers_are_indices_into_the_models_labels(
    names: list[str], labels: list[str], expected: list[str]
) -> None:
    assert in_terms_of(names, labels) == expected


def test_labels_that_do_not_match_are_told() -> None:
    assert mismatch(["Positive", "negative"], NAMED) == ""
    assert mismatch([], NAMED) == ""
    assert mismatch(["1", "2"], []) == "", "a run of an older version does not know the labels"
    assert mismatch(["1", "2", "2"], NAMED) == (
        "no accuracy, because the payload's labels (1, 2) are none of the model's (negative, positive)"
    )
    assert mismatch(["positive", "pos"], NAMED) == "1 of 2 items count as wrong: the model has no label pos"


def test_the_front_holds_what_no_other_beats() -> None:
    assert pareto([(3, 90), (1, 80), (2, 79), (2, 85), (4, 90)]) == [(1, 80), (2, 85), (3, 90)]


@pytest.mark.parametrize(
    ("value", "text"),
    [(None, "–"), (0.25, "0.25"), (41.53, "41.5"), (1234.0, "1,234"), (4.9e8, "490 M"), (2.1e9, "2.1 G")],
)
def test_numbers_in_words(value: float | None, text: str) -> None:
    assert format.count(value) == text


def test_money_shows_its_currency() -> None:
    assert format.money(1234.5, "USD") == "$1,234.50"
    assert format.money(0.0456, "CHF") == "0.0456 CHF"


MODEL: dict[str, Any] = {
    "sustained": {"mean": 100.0},
    "accuracy": {"share": {"num": 1000, "right": 900}},
    "cpu_ms": 2.0,
    "memory_mib": 500.0,
}


def write_report(folder: Path, **models: dict[str, Any]) -> Path:
    folder.mkdir()
    (folder / "report.json").write_text(json.dumps({"models": models}))
    return folder


@pytest.mark.parametrize(
    ("change", "broken"),
    [
        ({}, []),
        ({"sustained": {"mean": 85.0}}, ["predictions/s within the SLO"]),
        ({"sustained": {"mean": 95.0}}, []),
        ({"sustained": {"mean": 150.0}}, []),
        ({"sustained": None}, ["predictions/s within the SLO"]),
        ({"accuracy": {"share": {"num": 1000, "right": 890}}}, ["accuracy, %"]),
        ({"accuracy": {"share": {"num": 1000, "right": 896}}}, []),
        ({"cpu_ms": 2.4}, ["CPU ms a prediction"]),
    ],
)
def test_a_budget_is_broken_by_what_got_worse(
    tmp_path: Path, change: dict[str, Any], broken: list[str]
) -> None:
    before = write_report(tmp_path / "a", m=MODEL)
    after = write_report(tmp_path / "b", m={**MODEL, **change})
    assert [one.title for one in compare(before, after).broken] == broken


def test_a_model_that_has_gone_breaks_the_budget(tmp_path: Path) -> None:
    before = write_report(tmp_path / "a", m=MODEL, n=MODEL)
    after = write_report(tmp_path / "b", n=MODEL)
    assert {one.model for one in compare(before, after).broken} == {"m"}
    with pytest.raises(ScenarioError, match="no model in common"):
        compare(before, write_report(tmp_path / "c", o=MODEL))
    with pytest.raises(ScenarioError, match="is not a report"):
        compare(before, tmp_path)


def test_a_budget_with_a_typo_is_refused(tmp_path: Path) -> None:
    before = write_report(tmp_path / "a", m=MODEL)
    budget = tmp_path / "budget.yaml"
    budget.write_text("default:\n  sustaind: 0.1\n")
    with pytest.raises(
        ScenarioError, match=r"line 2: unknown key 'sustaind' in default; did you mean 'sustained'"
    ):
        compare(before, before, budget)
    budget.write_text("models: {x: {}}\n")
    with pytest.raises(ScenarioError, match="the model 'x' is not in"):
        compare(before, before, budget)
