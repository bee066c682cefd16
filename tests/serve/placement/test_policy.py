"""When a group changes its placement: moving averages, gain against cost, hysteresis."""

from dataclasses import replace

import numpy as np
import pytest

from fewshard_models.sharding import contiguous
from fewshard_serve.placement.loads import LoadAverage
from fewshard_serve.placement.planner import balanced, heaviest_loads
from fewshard_serve.placement.policy import Rebalancer, RebalanceSettings, worth_changing

SETTINGS = RebalanceSettings()
SKEWED = np.array([[400.0, 300, 200, 100, 10, 10, 10, 10], [1.0] * 8])
CURRENT = contiguous(2, 8, 4, 2)


def test_a_steady_rate_is_averaged_to_itself():
    average = LoadAverage(half_life_s=10)
    assert average.loads is None
    for second in range(0, 50, 5):
        average.observe(np.array([[3, 4]]) * second, second)
    assert average.loads == pytest.approx(np.array([[3.0, 4.0]]))


def test_what_is_a_half_life_old_weighs_half():
    average = LoadAverage(half_life_s=10)
    average.observe(np.array([[0]]), 0)
    average.observe(np.array([[100]]), 10)
    average.observe(np.array([[100]]), 20)
    assert average.loads == pytest.approx(np.array([[(100 * 0.5) / (10 * 0.5 + 10)]]))
    assert average.seconds == pytest.approx(15)


def test_counters_that_begin_anew_count_from_nothing():
    average = LoadAverage(half_life_s=1e9)
    average.observe(np.array([[1000, 1000]]), 0)
    average.observe(np.array([[1100, 1000]]), 10)
    average.observe(np.array([[5, 100]]), 20)
    assert average.loads == pytest.approx(np.array([[105 / 20, 100 / 20]]))
    with pytest.raises(ValueError, match="come after"):
        average.observe(np.array([[6, 100]]), 19)


def test_a_gain_above_its_cost_is_taken_in_the_layers_that_have_it():
    decision = worth_changing(SKEWED, CURRENT, replace(SETTINGS, seconds_per_token=1e-3))
    assert decision.placement is not None
    decision.placement.check()
    before, after = heaviest_loads(SKEWED, CURRENT.slots), heaviest_loads(SKEWED, decision.placement.slots)
    assert after[0] < before[0]
    assert (decision.placement.slots[1] == CURRENT.slots[1]).all()
    assert decision.gain_s == pytest.approx((before - after).sum() * 1e-3 * SETTINGS.horizon_s)
    assert decision.cost_s == pytest.approx(decision.num_moves * SETTINGS.seconds_per_move)
    assert "saves" in decision.reason


def test_the_gain_must_be_a_multiple_of_the_cost():
    taken = worth_changing(SKEWED, CURRENT, replace(SETTINGS, seconds_per_token=1e-3))
    even = taken.gain_s / taken.num_moves
    for factor, worth in ((0.9, True), (1.1, False)):
        dear = replace(
            SETTINGS, seconds_per_token=1e-3, seconds_per_move=even / SETTINGS.cost_factor * factor
        )
        assert (worth_changing(SKEWED, CURRENT, dear).placement is not None) == worth


def test_a_small_share_of_the_time_is_left_alone():
    settings = replace(SETTINGS, seconds_per_move=0.0)
    share = 1 - heaviest_loads(SKEWED, worth_changing(SKEWED, CURRENT, settings).placement.slots).sum() / (
        heaviest_loads(SKEWED, CURRENT.slots).sum()
    )
    assert worth_changing(SKEWED, CURRENT, replace(settings, min_gain=share * 0.99)).placement is not None
    assert worth_changing(SKEWED, CURRENT, replace(settings, min_gain=share * 1.01)).placement is None


def rebalancer(**changes):
    return Rebalancer(replace(SETTINGS, seconds_per_token=1e-3, **changes))


def test_it_waits_for_loads_and_between_changes():
    watch = rebalancer()
    watch.observe(SKEWED * 0, 0)
    assert "known for 0 s" in watch.decide(CURRENT, 0).reason
    watch.observe(SKEWED * 20, 20)
    assert "known for 20 s" in watch.decide(CURRENT, 20).reason
    watch.observe(SKEWED * 100, 100)
    assert watch.decide(CURRENT, 100).placement is not None
    watch.changed(100)
    assert "59 s old" in watch.decide(CURRENT, 159).reason
    assert watch.decide(CURRENT, 160).placement is not None


def test_an_idle_model_moves_nothing():
    watch = rebalancer()
    watch.observe(SKEWED, 0)
    watch.observe(SKEWED, 100)
    assert watch.decide(CURRENT, 100).reason == "no expert has any load"


def test_loads_that_go_to_and_fro_move_once_at_most():
    """Two loads in turn, each for much less than a half life: the average sees the mean of both."""
    watch, counts, current, changes = rebalancer(), np.zeros((2, 8)), CURRENT, 0
    for second in range(0, 3600, 20):
        counts = counts + 20 * (SKEWED if second % 40 else SKEWED[:, ::-1])
        watch.observe(counts, second)
        decision = watch.decide(current, second)
        if decision.placement is not None:
            current, changes = decision.placement, changes + 1
            watch.changed(second)
    assert changes <= 2
    mean = SKEWED + SKEWED[:, ::-1]
    ideal = heaviest_loads(mean, balanced(mean, 4, 2).slots)
    assert heaviest_loads(mean, current.slots).sum() <= 1.05 * ideal.sum()
