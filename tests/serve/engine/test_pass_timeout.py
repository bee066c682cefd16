"""When a forward pass counts as stuck."""

from fewshard_serve.engine.batch import FACTOR, MAX_ALLOWED_S, MIN_ALLOWED_S, PassTimeout


def test_the_first_pass_has_the_longest():
    assert PassTimeout().allowed_s(1) == MAX_ALLOWED_S


def test_quick_passes_are_given_seconds():
    pace = PassTimeout()
    pace.observe(1000, 0.02)
    assert pace.allowed_s(10) == MIN_ALLOWED_S


def test_a_larger_batch_is_given_more_time_in_proportion():
    pace = PassTimeout()
    pace.observe(1000, 1.0)
    pace.observe(100, 0.1)
    assert pace.allowed_s(10) == pace.allowed_s(1000) == FACTOR
    assert pace.allowed_s(3000) == 3 * FACTOR
    assert pace.allowed_s(100_000) == MAX_ALLOWED_S


def test_items_without_tokens():
    pace = PassTimeout()
    pace.observe(0, 1.0)
    assert pace.allowed_s(0) == FACTOR
