"""How samples become a result."""

import json

import pytest

from fewshard_loadtest.measure import Plan, Result, Sample, percentile, summarise

PLAN = Plan(host="http://h", model="m", duration_s=10.0)


@pytest.mark.parametrize(
    ("share", "expected"), [(0.5, 5.0), (0.9, 9.0), (0.91, 10.0), (0.99, 10.0), (1.0, 10.0), (0.0, 1.0)]
)
def test_percentiles_are_nearest_rank(share: float, expected: float) -> None:
    assert percentile([float(i) for i in range(1, 11)], share) == expected


def test_percentile_of_nothing() -> None:
    assert percentile([], 0.5) is None


def test_only_what_was_sent_in_the_measured_time_counts() -> None:
    sent = (99.9, 100.0, 105.0, 109.9, 110.0)
    result = summarise(PLAN, [Sample(at, at, None) for at in sent], begun_at=100.0, generator_cpu=0.25)
    assert (result.num_requests, result.rps) == (3, 0.3)
    assert (result.p50_ms, result.max_ms) == (105.0, 109.9)


def test_failures_are_counted_apart_and_have_no_latency() -> None:
    samples = [
        Sample(1.0, 5.0, None),
        Sample(2.0, 9000.0, "HTTPError: 429"),
        Sample(3.0, 1.0, "HTTPError: 429"),
    ]
    result = summarise(PLAN, samples, begun_at=0.0, generator_cpu=0.0)
    assert (result.num_requests, result.num_failures, result.rps) == (3, 2, 0.1)
    assert result.errors == {"HTTPError: 429": 2}
    assert result.max_ms == 5.0


def test_no_answer_at_all() -> None:
    result = summarise(PLAN, [], begun_at=0.0, generator_cpu=0.0)
    assert (result.num_requests, result.rps, result.p50_ms, result.mean_ms) == (0, 0.0, None, None)


def test_a_result_survives_json() -> None:
    result = summarise(PLAN, [Sample(1.0, 5.0, None)], begun_at=0.0, generator_cpu=0.5)
    assert Result.from_dict(json.loads(json.dumps(result.as_dict()))) == result
