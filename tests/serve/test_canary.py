"""The judge of a canary on seeded data: it gives up what is worse, and what is as good hardly ever."""

import numpy as np
import pytest

from fewshard_serve.canary import Judge, JudgeConfig, Pair, rate_bets, upper_p99

MAX_REQUESTS = 20_000
NUM_RUNS = 100


def verdict(settings, pairs):
    """The number of pairs after which the version is given up, and why; None if it is not."""
    judge = Judge(settings)
    for number, pair in enumerate(pairs, 1):
        if why := judge.add(pair):
            return number, why
    return None, ""


def labelled(generator, num, loss, disagreement):
    """Pairs of two versions that disagree on so many items, on which the new one loses `loss` of accuracy."""
    draws = generator.random(num)
    harmful, helpful = (disagreement + loss) / 2, (disagreement - loss) / 2
    for draw in draws:
        harm = 1.0 if draw < harmful else -1.0 if draw < harmful + helpful else 0.0
        yield Pair(float(harm != 0), 0.01, 0.01, harm)


LABELS = JudgeConfig(max_flips=0.1, labels_from="labels.jsonl")


@pytest.mark.slow
@pytest.mark.parametrize("disagreement", [0.01, 0.02, 0.04])
def test_a_loss_of_one_point_is_found_within_20000_requests(disagreement):
    needed = []
    for seed in range(NUM_RUNS // 2):
        number, why = verdict(LABELS, labelled(np.random.default_rng(seed), MAX_REQUESTS, 0.01, disagreement))
        assert number is not None, (seed, disagreement)
        assert "less accurate" in why
        needed.append(number)
    print(f"{disagreement:.0%} disagree: median {np.median(needed):.0f}, largest {max(needed)}")


def as_good(seed):
    return labelled(np.random.default_rng(seed), 5000, 0.0, 0.04)


@pytest.mark.slow
def test_a_version_as_good_is_given_up_no_more_often_than_the_risk():
    """With a chance of 5 % there are more than 11 of 100 in 4 of 1,000 seedings."""
    seeds = range(NUM_RUNS)
    given_up = sum(
        verdict(LABELS, labelled(np.random.default_rng(seed), 5000, 0.0, 0.04))[0] is not None
        for seed in seeds
    )
    assert given_up <= 11, given_up


def flipping(generator, num, rate):
    return (Pair(float(draw < rate), 0.01, 0.01) for draw in generator.random(num))


@pytest.mark.slow
def test_more_flips_than_are_allowed_are_found_and_as_many_are_not():
    settings = JudgeConfig(max_flips=0.01)
    for seed in range(20):
        number, why = verdict(settings, flipping(np.random.default_rng(seed), MAX_REQUESTS, 0.02))
        assert number is not None
        assert "more than 1.00% of the items differently" in why
    runs = [verdict(settings, flipping(np.random.default_rng(seed), 5000, 0.01)) for seed in range(NUM_RUNS)]
    assert sum(number is not None for number, _ in runs) <= 11


def slow(generator, num, factor):
    for old, new in generator.lognormal(-4, 0.3, (num, 2)):
        yield Pair(0.0, old, factor * new)


@pytest.mark.slow
def test_a_version_that_is_slower_is_found_and_one_as_fast_is_not():
    settings = JudgeConfig(max_p99_ratio=1.1)
    for seed in range(20):
        number, why = verdict(settings, slow(np.random.default_rng(seed), MAX_REQUESTS, 1.6))
        assert number is not None
        assert "over 1.1 times" in why
    runs = [verdict(settings, slow(np.random.default_rng(seed), 5000, 1.1)) for seed in range(NUM_RUNS)]
    assert sum(number is not None for number, _ in runs) <= 11


def test_a_percentile_is_bounded_from_above():
    generator, risk = np.random.default_rng(5), 0.01
    bounds = [upper_p99(list(generator.random(1000)), risk) for _ in range(500)]
    assert sum(bound < 0.99 for bound in bounds) <= 12, "1 % of 500 is 5"
    assert np.mean(bounds) < 1.0
    assert upper_p99([1.0] * 100, risk) == float("inf"), "too few to say"


def test_one_run_of_each():
    """The slow tests have many."""
    number, why = verdict(LABELS, labelled(np.random.default_rng(0), MAX_REQUESTS, 0.01, 0.02))
    assert number is not None
    assert "less accurate" in why
    assert verdict(LABELS, as_good(0)) == (None, "")
    assert verdict(JudgeConfig(), flipping(np.random.default_rng(0), MAX_REQUESTS, 0.03))[0] is not None
    assert verdict(JudgeConfig(), flipping(np.random.default_rng(0), 5000, 0.005))[0] is None


@pytest.mark.parametrize("bound", [0.0, 1e-9, 0.01, 0.5, 1.0])
def test_no_bet_loses_more_than_it_has(bound):
    bets = rate_bets(bound)
    for value in (0.0, 1.0, 0.5, 0.0):
        bets.add(value)
    assert np.isfinite(bets.log_wealth)


def test_a_judge_without_pairs_says_nothing():
    assert Judge(LABELS).verdict == ""
