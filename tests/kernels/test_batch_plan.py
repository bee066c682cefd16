"""Which experts are multiplied together: a pure function of their rows and of what was timed."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fewshard_kernels.moe_ffn.batch_plan import MAX_JOINED_ROWS, MIN_JOINED_ROWS, Cost, Segment, plan, rounded

# An expert alone costs its weights and its rows; together the weights are read twice as fast.
ALONE = Cost((1, 512), (100.0, 611.0))
TOGETHER = Cost((1, 512), (50.0, 561.0))


@pytest.mark.parametrize("count", [1, 2, 31, 32, 33, 100, 1000, 4097])
def test_numbers_of_rows_are_rounded_up_by_little_and_to_few(count):
    assert (
        count <= rounded(count) <= max(2 * count - 1, 1)
        if count <= 32
        else rounded(count) < count + 32 + count / 16
    )
    assert rounded(rounded(count)) == rounded(count)
    assert len({rounded(rows) for rows in range(count, 2 * count)}) <= 18


def test_a_cost_is_read_between_and_beyond_the_timings():
    cost = Cost((1, 3, 7), (10.0, 20.0, 60.0))
    assert [cost.at(rows) for rows in (1, 2, 3, 5, 7, 9)] == [10.0, 15.0, 20.0, 40.0, 60.0, 80.0]


def test_neighbours_with_as_many_rows_are_joined_and_gaps_are_not_bridged():
    assert plan([40, 0, 40, 41, 39, 0], ALONE, TOGETHER) == [Segment(0, 1, 64), Segment(2, 3, 64)]


def test_an_expert_with_many_more_rows_stands_alone():
    assert plan([8, 7, 2000, 9, 6], ALONE, TOGETHER) == [
        Segment(0, 2, MIN_JOINED_ROWS),
        Segment(2, 1, rounded(2000)),
        Segment(3, 2, MIN_JOINED_ROWS),
    ]


def test_joined_products_stay_within_their_size():
    assert plan([500] * 6, ALONE, TOGETHER) == [Segment(0, 4, 512), Segment(4, 2, 512)]
    assert plan([4000] * 3, ALONE, TOGETHER) == [Segment(0, 2, 4096), Segment(2, 1, 4096)]


def test_without_a_joined_product_every_expert_stands_alone():
    assert plan([3, 0, 70], ALONE, None) == [Segment(0, 1, 4), Segment(2, 1, 96)]


@given(st.lists(st.integers(0, 3000), min_size=1, max_size=70))
def test_every_row_has_a_place_and_no_plan_costs_more_than_all_alone(counts):
    segments = plan(counts, ALONE, TOGETHER)
    covered = [e for s in segments for e in range(s.first, s.first + s.num_experts)]
    assert covered == [expert for expert, count in enumerate(counts) if count]
    for segment in segments:
        assert segment.num_rows >= max(counts[segment.first : segment.first + segment.num_experts])
        assert segment.num_experts <= 2 or segment.num_experts * segment.num_rows <= MAX_JOINED_ROWS
    cost = sum(s.num_experts * (ALONE if s.num_experts == 1 else TOGETHER).at(s.num_rows) for s in segments)
    assert cost <= sum(ALONE.at(rounded(count)) for count in counts if count) * (1 + 1e-9)
