"""What heavy inputs may cost together, and the rule between callers."""

from fewshard_serve.core import Caller
from fewshard_serve.engine.preparing_cost import SLICE_COST, heavy_cost
from fewshard_serve.fairness import Budget, Share

A, B, URGENT = Caller("a"), Caller("b"), Caller("u", is_urgent=True)


def test_only_inputs_larger_than_a_slice_are_heavy():
    assert heavy_cost([SLICE_COST] * 100) == 0
    assert heavy_cost([1, SLICE_COST + 1, SLICE_COST, 10 * SLICE_COST]) == 11 * SLICE_COST + 1


def test_the_first_may_take_everything_and_light_requests_always_pass():
    budget = Budget(100)
    assert budget.has_room(100)
    assert not budget.has_room(101)
    with budget.held(100, A):
        assert not budget.has_room(1, B)
        assert budget.has_room(0, B)
    assert budget.used == 0
    assert budget.has_room(100, B)


def test_a_caller_leaves_room_for_others_after_what_is_asked_for():
    budget = Budget(90)
    with budget.held(40, A):
        assert budget.has_room(40, A), "80 held, 10 free: eight times as much"
        assert not budget.has_room(41, A)
        assert budget.has_room(41, B)
        assert budget.has_room(50, URGENT)
        assert not budget.has_room(51, URGENT)
    assert budget.used == 0


def test_a_share_grows_by_the_same_rule_and_keeps_what_it_has_where_there_is_no_room():
    budget = Budget(100)
    a, b = Share(budget, A), Share(budget, B)
    assert a.resize(50)
    assert a.resize(80)
    assert not a.resize(90), "90 held, 10 free: more than eight times as much"
    assert a.amount == budget.used == 80
    assert b.resize(10)
    assert not b.resize(21)
    assert a.resize(20)
    assert b.resize(21)
    a.release()
    b.release()
    b.release()
    assert budget.used == 0
