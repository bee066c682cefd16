"""Room is taken and given back exactly, and a refusal says when to come back."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fewshard_serve.engine.adaptive_share import RecentRate
from fewshard_serve.engine.admission import (
    MAX_RETRY_AFTER_S,
    MIN_RETRY_AFTER_S,
    UNMEASURED_RETRY_AFTER_S,
    Admission,
)
from fewshard_serve.errors import Overloaded, TooLarge


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def admission(clock: Clock) -> Admission:
    return Admission("m", max_items=10, max_tokens=100, clock=clock)


def test_room_is_exact_in_both_units(admission):
    first = admission.admit(4, 60)
    second = admission.admit(6, 40)
    assert (admission.num_items, admission.num_tokens) == (10, 100)
    with pytest.raises(Overloaded):
        admission.admit(1, 0)
    first.release()
    with pytest.raises(Overloaded):
        admission.admit(1, 61)
    admission.admit(1, 60).release()
    second.release()
    assert (admission.num_items, admission.num_tokens) == (0, 0)


def test_a_refused_request_takes_no_room(admission):
    with admission.admit(9, 9), pytest.raises(Overloaded):
        admission.admit(2, 2)
    assert admission.num_items == 0
    admission.admit(10, 100)


def test_release_twice_gives_back_once(admission):
    ticket = admission.admit(3, 3)
    admission.admit(2, 2)
    ticket.release()
    ticket.release()
    assert (admission.num_items, admission.num_tokens) == (2, 2)


def test_an_error_inside_gives_the_room_back(admission):
    with pytest.raises(RuntimeError), admission.admit(3, 3):
        raise RuntimeError
    assert admission.num_items == 0


@pytest.mark.parametrize(
    ("num_items", "num_tokens", "limit"), [(11, 1, "at most 10"), (1, 101, "at most 100")]
)
def test_what_could_never_fit_is_too_large_and_names_the_limit(admission, num_items, num_tokens, limit):
    with pytest.raises(TooLarge, match=limit):
        admission.admit(num_items, num_tokens)


def test_retry_after_is_items_in_flight_over_the_recent_rate(admission, clock):
    for _ in range(40):  # 5 items every half second: ten a second
        admission.admit(5, 5).release()
        clock.now += 0.5
    admission.admit(10, 10)
    with pytest.raises(Overloaded) as refusal:
        admission.admit(1, 1)
    assert refusal.value.retry_after_s == pytest.approx(1.0, rel=0.1)


def test_retry_after_before_anything_was_served(admission):
    admission.admit(10, 10)
    assert admission.retry_after_s() == UNMEASURED_RETRY_AFTER_S


def test_retry_after_is_clamped(clock):
    admission = Admission("m", max_items=10**6, max_tokens=10**6, clock=clock)
    admission.admit(1, 1).release()
    admission.admit(10**6, 0)
    assert admission.retry_after_s() == MAX_RETRY_AFTER_S
    fast = Admission("m", max_items=10**6, max_tokens=10**6, clock=clock)
    fast.admit(10**6, 0).release()
    fast.admit(1, 0)
    assert fast.retry_after_s() == MIN_RETRY_AFTER_S


def test_failed_requests_do_not_count_as_served(admission, clock):
    for _ in range(100):
        admission.admit(5, 5).release(served=False)
        clock.now += 0.01
    admission.admit(10, 10)
    assert admission.retry_after_s() == UNMEASURED_RETRY_AFTER_S


def test_the_rate_forgets():
    rate = RecentRate(window_s=10, num_slices=20)
    rate.add(1000, now=100.0)
    assert rate.per_second(105.0) > 0
    assert rate.per_second(111.0) == 0.0


def test_the_rate_of_a_steady_stream_keeps_few_counters():
    rate = RecentRate(window_s=10, num_slices=20)
    for step in range(5000):
        rate.add(3, now=step * 0.01)
    assert rate.per_second(50.0) == pytest.approx(300, rel=0.06)
    assert len(rate._slices) <= 20


@given(st.lists(st.tuples(st.integers(1, 6), st.integers(0, 60), st.booleans()), max_size=60))
def test_never_over_the_limits_and_nothing_leaks(steps):
    admission = Admission("m", max_items=10, max_tokens=100)
    held = []
    for num_items, num_tokens, release_first in steps:
        if release_first and held:
            held.pop(0).release()
        try:
            held.append(admission.admit(num_items, num_tokens))
        except Overloaded:
            is_full = admission.num_items + num_items > 10 or admission.num_tokens + num_tokens > 100
            free_items, free_tokens = 10 - admission.num_items, 100 - admission.num_tokens
            takes_all = admission.num_items >= 8 * free_items or admission.num_tokens >= 8 * max(
                free_tokens, 1
            )
            assert is_full or takes_all
        assert admission.num_items <= 10
        assert admission.num_tokens <= 100
    for ticket in held:
        ticket.release()
    assert (admission.num_items, admission.num_tokens) == (0, 0)


def test_refusals_elsewhere_let_the_limit_grow_too(clock):
    admission = Admission("sst2", max_items=1024, max_tokens=10**6, clock=clock)
    limit = admission.limit_items
    for has_refused, grown in ((False, limit), (True, min(2 * limit, 1024))):
        if has_refused:
            admission.note_refusals()
        for _ in range(2):
            with admission.admit(500, 1) as ticket:
                clock.now += 0.2
                ticket.note_wait(0.2)
        assert admission.limit_items == grown
