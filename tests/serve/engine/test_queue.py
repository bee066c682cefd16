"""The queue alone: order, budget, and that every entry leaves exactly once."""

from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fewshard_core.values import Item
from fewshard_serve.engine.queue import Entry, Queue

NEVER = float("inf")


@dataclass
class Someone:
    is_gone: bool = False

    def settle(self, resolution):
        raise AssertionError("the queue settles nothing")


def entry(num_tokens: int, *, is_gone: bool = False, deadline_at: float = NEVER, index: int = 0) -> Entry:
    return Entry(Item(None, num_tokens), Someone(is_gone), index, float(index), deadline_at)


def queue_of(*entries: Entry) -> Queue:
    queue = Queue()
    queue.extend(entries)
    return queue


def test_cut_keeps_the_token_budget_and_the_order():
    entries = [entry(4), entry(4), entry(4), entry(1)]
    queue = queue_of(*entries)
    assert queue.cut(10, 99, 0.0).batch == entries[:2]
    assert queue.cut(10, 99, 0.0).batch == entries[2:]
    assert not queue
    assert queue.num_tokens == 0


def test_cut_keeps_the_item_limit():
    entries = [entry(0) for _ in range(5)]
    queue = queue_of(*entries)
    assert queue.cut(10, 3, 0.0).batch == entries[:3]
    assert queue.cut(10, 3, 0.0).batch == entries[3:]


@pytest.mark.parametrize("position", [0, 1])
def test_an_item_over_the_budget_goes_alone(position):
    entries = [entry(2), entry(2)]
    entries.insert(position, entry(50))
    queue = queue_of(*entries)
    batches = []
    while queue:
        batches.append(queue.cut(10, 99, 0.0).batch)
    assert [entries[position]] in batches
    assert [one for batch in batches for one in batch] == entries


def test_images_cost_no_tokens_but_may_ride_after_a_full_budget():
    entries = [entry(10), entry(0), entry(1)]
    assert queue_of(*entries).cut(10, 99, 0.0).batch == entries[:2]


def test_expired_and_abandoned_are_dropped_and_reported():
    late, gone, live = entry(9, deadline_at=5.0), entry(9, is_gone=True), entry(9, deadline_at=5.1)
    cut = queue_of(late, gone, live).cut(10, 99, now=5.0)
    assert (cut.expired, cut.abandoned, cut.batch) == ([late], [gone], [live])


def test_an_abandoned_entry_is_not_reported_as_expired():
    both = entry(1, is_gone=True, deadline_at=1.0)
    cut = queue_of(both).cut(10, 99, now=2.0)
    assert (cut.abandoned, cut.expired) == ([both], [])


def test_cut_of_nothing():
    cut = Queue().cut(10, 10, 0.0)
    assert (cut.batch, cut.expired, cut.abandoned) == ([], [], [])


def test_head_is_the_oldest():
    queue = queue_of(entry(1, index=3), entry(1, index=7))
    assert queue.head_enqueued_at == 3.0
    queue.cut(1, 1, 0.0)
    assert queue.head_enqueued_at == 7.0


plans = st.lists(
    st.tuples(st.integers(0, 30), st.booleans(), st.sampled_from([1.0, 2.0, NEVER])), max_size=60
)


@given(plans, st.integers(1, 40), st.integers(1, 8), st.lists(st.integers(1, 9), max_size=12))
def test_no_entry_is_lost_and_every_batch_keeps_its_budget(plan, max_tokens, max_items, sizes):
    entries = [
        entry(num_tokens, is_gone=is_gone, deadline_at=deadline_at, index=index)
        for index, (num_tokens, is_gone, deadline_at) in enumerate(plan)
    ]
    queue, waiting, ran, dropped, now = Queue(), list(entries), [], [], 0.0
    while waiting or queue:
        size = sizes.pop() if sizes else 5
        queue.extend(waiting[:size])
        del waiting[:size]
        now += 0.25
        cut = queue.cut(max_tokens, max_items, now)
        tokens = sum(one.item.num_tokens for one in cut.batch)
        assert tokens <= max_tokens or sum(one.item.num_tokens > 0 for one in cut.batch) == 1
        assert len(cut.batch) <= max_items
        assert cut.batch or cut.expired or cut.abandoned
        assert all(one.deadline_at <= now for one in cut.expired)
        assert all(one.deadline_at > now and not one.caller.is_gone for one in cut.batch)
        ran += cut.batch
        dropped += cut.expired + cut.abandoned
        assert queue.num_tokens == sum(
            one.item.num_tokens for one in entries[: len(entries) - len(waiting)] if one not in ran + dropped
        )
    assert ran == sorted(ran, key=lambda one: one.index), "first in, first out"
    assert sorted(one.index for one in ran + dropped) == list(range(len(entries)))
    assert {one.index for one in entries if one.caller.is_gone}.isdisjoint(one.index for one in ran)
