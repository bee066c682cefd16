"""The simulated deployment against closed forms, and what it compares."""

from dataclasses import replace

import numpy as np
import pytest

from fewshard_models.errors import PlacementError
from fewshard_serve.placement.loads import drifting, uniform, zipf
from fewshard_serve.placement.policy import RebalanceSettings
from fewshard_serve.placement.simulate import POLICIES, Deployment, simulate

SETTINGS = RebalanceSettings(seconds_per_token=1e-6, seconds_per_move=0.01)
DEPLOYMENT = Deployment(
    num_shards=4,
    slots_per_shard=4,
    batch_tokens=1000,
    top_k=1,
    rest_s=3e-3,
    collectives_s=1e-3,
    step_s=10,
    reform_s=2.0,
    repair_s=40.0,
    rebalance=SETTINGS,
)
EVEN = [uniform(2, 12)] * 30


def batch_s(shards, heaviest):
    """Rest in proportion, collectives, and two layers whose heaviest shard has this share of 1000 rows."""
    return 3e-3 * 4 / shards + 1e-3 + 2 * heaviest * 1000e-6


@pytest.mark.parametrize("policy", POLICIES)
def test_even_loads_without_failures_give_the_closed_form(policy):
    outcome = simulate(DEPLOYMENT, policy, EVEN, seed=0)
    assert outcome.duration_s == 300
    assert outcome.tokens_per_s == pytest.approx(1000 / batch_s(4, 0.25))
    assert outcome.imbalance == pytest.approx(1)
    assert (outcome.num_moves, outcome.num_rebalances, outcome.num_failures, outcome.lost_s) == (0, 0, 0, 0)


def test_a_fixed_placement_waits_for_its_heaviest_shard():
    loads = np.ones((2, 12))
    loads[0, :3] = 11
    outcome = simulate(DEPLOYMENT, "contiguous", [loads] * 5, seed=0)
    heaviest = (33 / 42 + 1 / 4) / 2
    assert outcome.imbalance == pytest.approx(4 * heaviest)
    assert outcome.tokens_per_s == pytest.approx(1000 / batch_s(4, heaviest))


def test_what_is_not_offered_is_not_served():
    outcome = simulate(replace(DEPLOYMENT, offered_tokens_per_s=50.0), "balanced", EVEN, seed=0)
    assert outcome.served_tokens == outcome.offered_tokens == 50 * 300


def test_a_death_costs_re_forming_loading_and_a_slower_group():
    """It dies in step 10 and is back in step 14: three experts a layer are loaded, and loaded back."""
    outcome = simulate(DEPLOYMENT, "contiguous", EVEN, seed=0, deaths=[10])
    assert outcome.num_failures == 1
    assert outcome.num_moves == 2 * 3 + 2 * 3
    assert outcome.by_loading_s == pytest.approx(12 * 0.01)
    assert outcome.lost_s == pytest.approx(2 * 2.0 + 12 * 0.01)
    whole, three = 1000 / batch_s(4, 0.25), 1000 / batch_s(3, 4 / 12)
    expected = whole * (260 - 2.06) + three * (40 - 2.06)
    assert outcome.served_tokens == pytest.approx(expected)


def test_survivors_without_room_wait_for_the_replacement():
    """Four steps without service; the replacement loads its experts when it joins."""
    outcome = simulate(replace(DEPLOYMENT, slots_per_shard=3), "balanced", EVEN, seed=0, deaths=[10])
    assert outcome.lost_s == pytest.approx(40 + 2 * 2.0 + outcome.by_loading_s)
    assert outcome.num_moves == 2 * 3
    assert outcome.served_tokens == pytest.approx(1000 / batch_s(4, 0.25) * (300 - outcome.lost_s))


def test_following_drift_serves_more_than_standing_still():
    deployment = replace(
        DEPLOYMENT,
        slots_per_shard=10,
        rest_s=1e-4,
        rebalance=RebalanceSettings(seconds_per_token=1e-6, seconds_per_move=0.01, half_life_s=60),
    )
    trace = list(drifting(zipf(2, 32, 1.0, seed=1), 150, drift=0.1, seed=2))
    outcomes = {policy: simulate(deployment, policy, trace, seed=3) for policy in POLICIES}
    followed, stood = outcomes["rebalanced"], outcomes["balanced"]
    assert followed.num_rebalances > 0
    assert stood.num_rebalances == stood.num_moves == 0
    assert followed.imbalance < stood.imbalance < outcomes["contiguous"].imbalance
    assert followed.tokens_per_s > stood.tokens_per_s > outcomes["contiguous"].tokens_per_s


def test_the_seed_decides_and_all_policies_meet_the_same_deaths():
    deployment = replace(DEPLOYMENT, mtbf_s=2000.0)
    first, again = (simulate(deployment, "rebalanced", EVEN * 4, seed=5) for _ in range(2))
    assert first == again
    assert first.num_failures > 0
    assert simulate(deployment, "contiguous", EVEN * 4, seed=5).num_failures == first.num_failures
    assert simulate(deployment, "rebalanced", EVEN * 4, seed=6) != first


def test_deaths_come_as_often_as_they_should():
    deployment = replace(DEPLOYMENT, mtbf_s=1000.0, repair_s=0.0)
    outcome = simulate(deployment, "balanced", EVEN * 40, seed=1)
    expected = 4 * outcome.duration_s / 1000
    assert abs(outcome.num_failures - expected) < 4 * expected**0.5


def test_a_group_that_lost_every_shard_comes_back():
    outcome = simulate(replace(DEPLOYMENT, num_shards=1, slots_per_shard=12), "balanced", EVEN, 0, deaths=[3])
    assert outcome.num_failures == 1
    assert outcome.lost_s == pytest.approx(40 + 2 * 2.0 + 24 * 0.01)
    assert outcome.served_tokens > 0


def test_what_cannot_fit_is_refused():
    with pytest.raises(PlacementError, match="4 slots are missing"):
        simulate(replace(DEPLOYMENT, slots_per_shard=2), "balanced", EVEN, seed=0)
