"""How candidates are timed, with a clock that only the candidates move."""

import itertools

import pytest

from fewshard_models.tuning.rounds import MAX_ROUNDS, time_batches


class Clock:
    now = 0.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


def taking(clock, seconds_per_item, calls=None, disturbance=None):
    def run(size):
        if calls is not None:
            calls.append(size)
        clock.now += seconds_per_item * size + (next(disturbance) if disturbance else 0.0)

    return run


def test_the_shortest_time_of_each_counts(clock):
    disturbed = itertools.cycle([5.0, 5.0, 0.0])
    runs = {"a": taking(clock, 0.01, disturbance=disturbed), "b": taking(clock, 0.011)}
    found = time_batches(runs, (1, 8), 1000.0, clock, clock)
    assert found == {
        "a": pytest.approx({1: 100, 8: 100}),
        "b": pytest.approx({1: 90.909, 8: 90.909}, rel=1e-3),
    }


def test_who_is_far_behind_is_not_timed_with_larger_batches(clock):
    runs = {"fast": taking(clock, 0.001), "slow": taking(clock, 0.004), "near": taking(clock, 0.0012)}
    found = time_batches(runs, (1, 8, 32), 1000.0, clock, clock)
    assert {name: list(rates) for name, rates in found.items()} == {
        "fast": [1, 8, 32],
        "slow": [1, 8],
        "near": [1, 8, 32],
    }


def test_sizes_beyond_the_limit_are_left_out_but_not_the_first(clock):
    found = time_batches({"a": taking(clock, 10.0), "b": taking(clock, 11.0)}, (1, 8), 3.0, clock, clock)
    assert {name: list(rates) for name, rates in found.items()} == {"a": [1], "b": [1]}


def test_what_is_close_takes_more_rounds_than_what_is_clear(clock):
    clear, close = [], []
    time_batches({"a": taking(clock, 1.0, clear), "b": taking(clock, 2.0)}, (1,), 1e6, clock, clock)
    time_batches({"a": taking(clock, 1.0, close), "b": taking(clock, 1.1)}, (1,), 1e6, clock, clock)
    assert len(clear) < len(close) == MAX_ROUNDS + 1
