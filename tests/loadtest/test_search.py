"""The bisection, on servers that are functions."""

import random
from collections.abc import Callable

import pytest

from fewshard_loadtest.measure import Plan, Sample, summarise
from fewshard_loadtest.search import Bisection, keeps


def drive(search: Bisection, is_kept: Callable[[float], bool]) -> int:
    steps = 0
    while not search.is_done:
        rate = search.next_rate()
        search.tell(rate, is_kept(rate))
        steps += 1
        assert steps < 100, "the search does not end"
    return steps


@pytest.mark.parametrize("start", [1.0, 90.0, 100.0, 5000.0])
def test_it_finds_the_greatest_rate(start: float) -> None:
    search = Bisection(start, precision=0.03)
    steps = drive(search, lambda rate: rate <= 100)
    assert search.sustained is not None
    assert 100 / 1.03 <= search.sustained <= 100
    assert steps < 30


def test_nothing_is_sustained_where_every_rate_fails() -> None:
    search = Bisection(50.0)
    drive(search, lambda _: False)
    assert search.sustained is None


def test_one_hiccup_does_not_decide() -> None:
    """Every rate fails the first time that it is tried."""
    seen: set[float] = set()

    def is_kept(rate: float) -> bool:
        is_second, _ = rate in seen, seen.add(rate)
        return is_second and rate <= 100

    search = Bisection(60.0)
    drive(search, is_kept)
    assert search.sustained == pytest.approx(100, rel=0.03)


def test_repeats_on_a_noisy_server_agree_within_five_percent() -> None:
    """A limit that wavers by one percent from run to run."""
    rng = random.Random(4)
    found = []
    for _ in range(40):
        search = Bisection(70.0, precision=0.02)
        drive(search, lambda rate: rate <= 100 * rng.gauss(1, 0.01))
        assert search.sustained is not None
        found.append(search.sustained)
    assert max(found) / min(found) < 1.05


def samples(latency_ms: float, num: int = 100, num_failed: int = 0) -> list[Sample]:
    return [Sample(i / 10, latency_ms, "500" if i < num_failed else None) for i in range(num)]


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        (samples(40), True),
        (samples(60), False),
        (samples(40, num_failed=1), True),
        (samples(40, num_failed=2), False),
        ([], False),
    ],
)
def test_what_the_slo_asks(given: list[Sample], kept: bool) -> None:
    result = summarise(Plan("h", "m", rate=10.0, duration_s=10.0), given, 0.0, 0.1)
    assert keeps(result, p99_ms=50, max_errors=0.01) is kept


def test_a_queue_that_grows_is_not_kept() -> None:
    """Every answer within the limit, but a tenth of them after the end."""
    late = [Sample(i / 10, 1500.0, None) for i in range(100)]
    result = summarise(Plan("h", "m", rate=10.0, duration_s=10.0), late, 0.0, 0.1)
    assert not keeps(result, p99_ms=2000, max_errors=0.0)
