"""The table from made-up results: means over seeds, R, verdicts and targets."""

import pytest

from fewshard_models.evaluation.costs import Cost
from fewshard_models.evaluation.report import make_table
from fewshard_models.evaluation.table import NO_ACCURACY, NOT_MADE, build_rows, checks, payers, rivals


def rows_of(*results):
    return {row.system.name: row for row in build_rows(results)}


def test_seeds_are_averaged_and_n_is_said(result):
    row = rows_of(*(result("sst2-dense", seed, wrong=range(10 - seed)) for seed in range(3)))["sst2-dense"]
    assert row.accuracy.mean == pytest.approx(0.91)
    assert row.accuracy.error == pytest.approx(0.01 / 3**0.5)
    assert (row.accuracy.n, row.accuracy.of_items) == (3, False)
    assert row.robustness["ood"].mean == pytest.approx(0.75)
    assert row.robustness["corrupted"].mean == pytest.approx(0.7)


def test_one_seed_has_the_error_of_its_items(result):
    accuracy = rows_of(result("sst2-dense", wrong=range(10)))["sst2-dense"].accuracy
    assert accuracy.of_items
    assert accuracy.error == pytest.approx((0.9 * 0.1 / 100) ** 0.5)


def test_r_is_speedup_over_mac_reduction(result):
    rows = rows_of(
        result("sst2-dense", macs=100, ms=30.0, dense_ms=30.0),
        result("sst2-moe", macs=40, ms=15.0, dense_ms=30.0),
    )
    speed = rows["sst2-moe"].speed(64)
    assert rows["sst2-moe"].macs_share == pytest.approx(0.4)
    assert speed.speedup == pytest.approx(2.0)
    assert speed.realised == pytest.approx(2.0 * 0.4)
    assert rows["sst2-dense"].speed(64).realised is None
    assert rows["sst2-moe"].speed(8) is None


def test_times_are_only_compared_within_one_run(result):
    rows = rows_of(result("sst2-dense", ms=1.0), result("sst2-moe", macs=40, ms=15.0, dense_ms=30.0))
    assert rows["sst2-moe"].speed(1).speedup == pytest.approx(2.0)


def test_a_mask_counts_by_its_nonzero_weights(result):
    masked = Cost(1000, 1000, 250, 100, 30, "32x32 image")
    rows = rows_of(result("cifar10-dense"), result("cifar10-dst-masked", cost=masked, ms=10.0, dense_ms=10.0))
    row = rows["cifar10-dst-masked"]
    assert row.macs_share == pytest.approx(0.3)
    assert row.speed(1).realised == pytest.approx(0.3)


def test_seeds_are_paired_with_their_own_dense_model(result):
    rows = rows_of(
        result("sst2-dense", 0, wrong=(0, 1)),
        result("sst2-dense", 1, wrong=(2, 3)),
        result("sst2-moe", 1, wrong=(2, 3, 4, 5)),
        result("sst2-moe", 7, wrong=(0,)),
    )
    pairs = rows["sst2-moe"].against_dense
    assert [(pair.seed, pair.other_seed) for pair in pairs.pairs] == [(1, 1), (7, 0)]
    assert [(pair.mcnemar.gained, pair.mcnemar.lost) for pair in pairs.pairs] == [(0, 2), (1, 0)]
    assert pairs.flipped == pytest.approx((0.02 + 0.01) / 2)
    assert pairs.change == pytest.approx(-1 / 200)


def test_predictions_of_other_data_are_not_paired(result):
    rows = rows_of(result("sst2-dense", num_items=80), result("sst2-moe"))
    assert rows["sst2-moe"].against_dense is None


def test_what_is_missing_is_said(result):
    rows = rows_of(
        result("sst2-dense", held_out=None, missing="needs pretrained weights"),
        result("sst2-moe", held_out=None),
    )
    assert rows["sst2-dense"].missing == NO_ACCURACY == "not measured: needs pretrained weights"
    assert rows["sst2-moe"].missing == NO_ACCURACY
    assert rows["cifar10-dst"].missing == NOT_MADE
    text = make_table("paper", "fewshard table2", [result("sst2-dense", held_out=None)]).as_markdown()
    assert f"| {NO_ACCURACY} | 91.4 |" in text


def test_rivals_are_judged_in_plain_words(result):
    ahead = rows_of(
        result("sst2-moe", wrong=(), macs=40),
        result("sst2-narrow", wrong=range(20), macs=41),
        result("sst2-dense", macs=100),
    )
    (line,) = rivals(list(ahead.values()))
    assert line.startswith("sst2-moe beats sst2-narrow in accuracy: 100.00 against 80.00 % (+20.00 points)")
    assert "more than chance in every seed (McNemar p = 1.9e-06)" in line
    assert line.endswith("They cost 0.40 and 0.41 of the dense model's MACs.")
    behind = rows_of(
        result("sst2-moe", wrong=(0, 1), macs=60),
        result("sst2-narrow", wrong=(0,), macs=40),
        result("sst2-dense"),
    )
    (line,) = rivals(list(behind.values()))
    assert line.startswith("sst2-moe does not beat sst2-narrow in accuracy: 98.00 against 99.00 %")
    assert "chance explains (McNemar p = 1)" in line
    assert "Not at equal MACs: 0.60 and 0.40" in line
    (line,) = rivals(list(rows_of(result("sst2-moe")).values()))
    assert line == "sst2-moe cannot be compared with sst2-narrow: not measured: no result file."


def test_targets_are_met_missed_or_open(result):
    rows = rows_of(
        result("sst2-dense", wrong=range(9), ms=30.0, dense_ms=30.0),
        result("sst2-moe", wrong=range(10), macs=45, ms=20.0, dense_ms=30.0),
    )
    found = {(check.system, check.promise): check for check in checks(list(rows.values()))}
    assert found["sst2-dense", "accuracy >= 91.0 %"].met is True
    assert found["sst2-moe", "at most 0.5 points below dense"].met is False
    assert found["sst2-moe", "at most 0.5 points below dense"].found == "-1.00 points"
    assert found["sst2-moe", "MACs <= 0.45 of dense"].met is True
    assert found["sst2-moe", "R >= 0.8 at batch 64"].found == "0.68"
    assert found["sst2-moe", "R >= 0.8 at batch 64"].met is False
    assert found["cifar10-dst", "accuracy >= 93.8 %"].met is None
    assert len(found) == 11


def test_who_pays_is_named(result):
    # Fifteen of the sixteen lost items are of class 0, thirty points of its fifty items.
    rows = rows_of(result("sst2-dense"), result("sst2-moe", wrong=(*range(0, 30, 2), 1)))
    lost = payers(list(rows.values()))
    assert rows["sst2-moe"].against_dense.change == pytest.approx(-0.16)
    assert lost == []
    rows = rows_of(result("sst2-dense", wrong=(1, 3, 5, 7)), result("sst2-moe", wrong=range(0, 20, 2)))
    assert payers(list(rows.values())) == [
        "sst2-moe: negative -20.0 points, against -6.00 on average over all items."
    ]
