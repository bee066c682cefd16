"""The fair queue alone: nobody's backlog delays the others, and nothing is lost."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fewshard_serve.core import Caller
from fewshard_serve.fairness import URGENT_WEIGHT, FairQueue

A, B, C = Caller("a"), Caller("b"), Caller("c")
URGENT = Caller("a", is_urgent=True)


def filled(*pushes):
    queue = FairQueue()
    for caller, entry, cost in pushes:
        queue.push(caller, entry, cost)
    return queue


def drained(queue):
    return [queue.pop() for _ in range(len(queue))]


def test_one_caller_is_served_in_order():
    assert drained(filled(*((A, n, n % 3 + 1) for n in range(20)))) == list(range(20))


def test_a_newcomer_is_next_however_long_the_backlog():
    queue = filled(*((A, f"a{n}", 10) for n in range(1000)))
    queue.pop()
    queue.push(B, "b0", 10)
    queue.push(B, "b1", 10)
    assert [queue.pop() for _ in range(4)] == ["b0", "a1", "b1", "a2"]


def test_shares_are_by_cost_not_by_count():
    """a's entries cost four times b's: b has four turns to each of a's."""
    queue = filled(*((A, "a", 4) for _ in range(50)), *((B, "b", 1) for _ in range(200)))
    served = [queue.pop() for _ in range(100)]
    assert served.count("b") == pytest.approx(4 * served.count("a"), abs=4)


def test_idling_earns_nothing():
    """A caller that comes back does not catch up on what it might have had."""
    queue = filled((B, "b", 1), *((A, "a", 1) for _ in range(300)))
    for _ in range(200):
        queue.pop()
    for _ in range(50):
        queue.push(B, "b", 1)
    assert [queue.pop() for _ in range(20)].count("b") <= 11


def test_leaving_and_coming_back_does_not_help():
    """A caller that always has one entry waiting gets no more than one that has many."""
    queue = filled(*((A, "a", 1) for _ in range(200)), (B, "b", 1))
    served = []
    for _ in range(100):
        served.append(queue.pop())
        if served[-1] == "b":
            queue.push(B, "b", 1)
    assert served.count("b") == pytest.approx(50, abs=1)


def test_the_urgent_go_first_and_starve_nobody():
    queue = filled(*((A, "a", 1) for _ in range(100)), *((B, "b", 1) for _ in range(100)))
    queue.pop()
    for n in range(100):
        queue.push(URGENT, f"u{n}", 1)
    served = [queue.pop() for _ in range(10 * (URGENT_WEIGHT + 2))]
    assert served[0] == "u0"
    assert served.count("a") == pytest.approx(10, abs=2)
    assert served.count("b") == pytest.approx(10, abs=2)


def test_what_is_dropped_costs_its_caller_nothing():
    queue = filled(*((A, f"a{n}", 100) for n in range(5)), *((B, f"b{n}", 100) for n in range(5)))
    dropped = [queue.pop(is_served=False) for _ in range(3)]
    assert dropped == ["a0", "b0", "a1"]
    assert sorted(queue.pop() for _ in range(2)) == ["a2", "b1"]


def test_callers_that_have_gone_are_forgotten():
    queue = filled(*((A, "a", 1) for _ in range(10_000)))
    for n in range(5000):
        queue.push(Caller(str(n)), n, 1)
        queue.pop()
        queue.pop()
    assert len(queue._flows) < 200
    drained(queue)
    assert len(queue._flows) == 0


loads = st.lists(st.tuples(st.sampled_from([A, B, C, URGENT]), st.integers(1, 50)), max_size=120)


@given(loads, st.lists(st.integers(0, 6), max_size=60))
def test_nothing_is_lost_and_each_caller_keeps_its_order(load, bursts):
    queue, waiting, served = FairQueue(), list(enumerate(load)), []
    sizes = itertools.chain(bursts, itertools.repeat(1000))
    while waiting or queue:
        size = next(sizes)
        for number, (caller, cost) in waiting[:size]:
            queue.push(caller, (caller, number), cost)
        del waiting[:size]
        for _ in range(min(2, len(queue))):
            head = queue.peek()
            served.append(queue.pop())
            assert served[-1] == head
    assert sorted(number for _, number in served) == list(range(len(load)))
    for caller in (A, B, C, URGENT):
        numbers = [number for who, number in served if who == caller]
        assert numbers == sorted(numbers)


costs = st.lists(st.integers(1, 50), min_size=40, max_size=40)


@given(st.lists(costs, min_size=2, max_size=6), st.integers(1, 60), st.data())
def test_between_callers_that_wait_the_work_done_differs_by_one_entry_of_each(backlogs, num_pops, data):
    """The bound of start-time fair queueing, whatever the costs and however the backlogs arrive."""
    queue = FairQueue()
    callers = [Caller(str(n)) for n in range(len(backlogs))]
    order = data.draw(st.permutations([n for n, costs in enumerate(backlogs) for _ in costs]))
    left = [iter(costs) for costs in backlogs]
    for n in order:
        cost = next(left[n])
        queue.push(callers[n], (n, cost), cost)
    done, waiting = [0] * len(backlogs), [40] * len(backlogs)
    for _ in range(num_pops):
        n, cost = queue.pop()
        done[n] += cost
        waiting[n] -= 1
        for m, k in itertools.combinations([m for m in range(len(backlogs)) if waiting[m]], 2):
            assert abs(done[m] - done[k]) <= max(backlogs[m]) + max(backlogs[k])


def test_a_caller_who_may_not_run_keeps_its_turn():
    queue = filled((A, "a1", 5), (A, "a2", 5), (B, "b", 5))
    assert queue.pop_if(lambda caller: caller != A) == "b"
    assert queue.pop_if(lambda caller: caller != A) is None
    assert drained(queue) == ["a1", "a2"]


def test_a_callers_flows_do_not_wait_for_each_other():
    queue = FairQueue()
    for number in range(10):
        queue.push(A, f"slow{number}", 100, flow="slow model")
    queue.push(A, "quick", 1, flow="quick model")
    assert queue.pop() == "slow0"
    assert queue.pop() == "quick"
