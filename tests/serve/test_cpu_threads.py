"""How many threads a model computes with, and which numbers are measured."""

import pytest

from fewshard_serve import cpu_threads
from fewshard_serve.errors import ConfigError


@pytest.fixture
def cores(monkeypatch):
    """Sets the number of cores and the quota."""
    monkeypatch.delenv(cpu_threads.NUM_THREADS, raising=False)

    def use(number, quota=None):
        monkeypatch.setattr(cpu_threads, "available_cores", lambda: number)
        monkeypatch.setattr(cpu_threads, "cpu_quota", lambda: quota)

    return use


def test_one_core_is_left_to_everything_else(cores):
    cores(9)
    assert [cpu_threads.num_threads(processes) for processes in (1, 2, 3, 20)] == [8, 4, 2, 1]
    cores(1)
    assert cpu_threads.num_threads(1) == 1


def test_the_user_may_decide(cores, monkeypatch):
    cores(9)
    monkeypatch.setenv(cpu_threads.NUM_THREADS, "3")
    assert cpu_threads.num_threads(2) == 3
    assert cpu_threads.threads_to_measure(2) == ()
    for odd in ("0", "many", "-1"):
        monkeypatch.setenv(cpu_threads.NUM_THREADS, odd)
        with pytest.raises(ConfigError, match=f"FEWSHARD_NUM_THREADS is '{odd}'; set a number"):
            cpu_threads.num_threads(2)


@pytest.mark.parametrize(
    ("number", "processes", "expected"),
    [(1, 1, ()), (2, 1, (1, 2)), (8, 1, (7, 1, 2, 4, 8)), (8, 2, (3, 1, 2, 4)), (2, 2, ())],
)
def test_the_usual_number_is_measured_against_others(cores, number, processes, expected):
    cores(number)
    assert cpu_threads.threads_to_measure(processes) == expected


def test_a_quota_below_one_core_is_said(cores, caplog):
    cores(1, quota=0.5)
    assert cpu_threads.threads_to_measure(1) == ()
    assert cpu_threads.num_threads(1) == 1
    assert "quota is 0.50 of a core: models compute with one thread" in caplog.text
