"""Which candidate is chosen for which times."""

import pytest

from fewshard_models.tuning.choice import Candidate, Measured, decide


def candidates(**rates):
    return [Candidate(name, dict(zip((1, 8, 32), found, strict=False))) for name, found in rates.items()]


def test_the_fastest_is_chosen():
    found = decide(candidates(fp32=(100, 300, 400), bf16=(200, 700, 900), fp16=(150, 400, 500)))
    assert found.chosen == "bf16"
    assert found.order == ["bf16", "fp16", "fp32"]
    assert found.reason == "measured: 501 items/s; fp16 311, fp32 229"


def test_a_small_gain_does_not_justify_the_less_exact():
    assert decide(candidates(fp32=(100, 300, 400), bf16=(104, 312, 416))).chosen == "fp32"
    assert decide(candidates(fp32=(100, 300, 400), bf16=(106, 318, 424))).chosen == "bf16"


def test_the_reason_says_by_how_much_a_faster_one_falls_short():
    found = decide([Candidate("1", {1: 363}), Candidate("2", {1: 374})], " threads", price=1.15)
    assert found.chosen == "1"
    assert found.reason.endswith("; 2 threads 374, which must be 1.15 times as fast to be chosen")


def test_batches_do_not_outweigh_a_late_answer_to_one_user():
    assert decide(candidates(one=(500, 900, 900), two=(140, 1300, 1300)), price=1.15).chosen == "one"


def test_sizes_that_not_all_were_timed_with_do_not_count():
    found = decide(candidates(fp32=(100, 100), bf16=(200, 200, 50)))
    assert found.chosen == "bf16"


def test_what_was_dropped_or_not_timed_is_not_chosen():
    fast = Candidate("bf16", {1: 900.0}, dropped="a logit is off")
    untimed = Candidate("fp16", {})
    found = decide([Candidate("fp32", {1: 100.0}), fast, untimed])
    assert found.chosen == "fp32"
    assert found.order == ["fp32", "fp16"]
    with pytest.raises(ValueError, match="every candidate was dropped"):
        decide([fast])


def test_it_survives_json():
    found = decide(candidates(fp32=(100, 300), bf16=(200, 700)))
    assert Measured.of_json(found.as_json(), ["bf16", "fp32"]) == found


@pytest.mark.parametrize(
    "value",
    [
        None,
        [],
        "bf16",
        {"chosen": "bf16"},
        {"chosen": "int4", "reason": "", "candidates": [{"name": "fp32", "items_per_s": {}, "dropped": ""}]},
        {"chosen": "fp32", "reason": "", "candidates": [{"name": "fp32", "items_per_s": 3, "dropped": ""}]},
    ],
)
def test_other_json_is_nothing(value):
    assert Measured.of_json(value, ["fp32"]) is None


def test_a_measurement_of_other_candidates_is_nothing():
    found = decide(candidates(fp32=(100, 300), bf16=(200, 700)))
    assert Measured.of_json(found.as_json(), ["fp32", "bf16", "fp16"]) is None
