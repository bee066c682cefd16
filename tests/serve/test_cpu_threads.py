"""How many threads a model computes with."""

import os

import pytest

from fewshard_serve import cpu_threads


@pytest.mark.parametrize(
    ("content", "expected"), [("max 100000", 8), ("250000 100000", 2), ("50000 100000", 1), ("odd", 8)]
)
def test_a_containers_quota_counts(tmp_path, monkeypatch, content, expected):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)), raising=False)
    file = tmp_path / "cpu.max"
    file.write_text(content)
    assert cpu_threads.available_cores(file) == expected
    assert cpu_threads.available_cores(tmp_path / "none") == 8


def test_one_core_is_left_to_everything_else(monkeypatch):
    monkeypatch.delenv(cpu_threads.NUM_THREADS, raising=False)
    monkeypatch.setattr(cpu_threads, "available_cores", lambda: 9)
    assert [cpu_threads.num_threads(processes) for processes in (1, 2, 3, 20)] == [8, 4, 2, 1]
    monkeypatch.setattr(cpu_threads, "available_cores", lambda: 1)
    assert cpu_threads.num_threads(1) == 1


def test_the_user_may_decide(monkeypatch):
    monkeypatch.setattr(cpu_threads, "available_cores", lambda: 9)
    monkeypatch.setenv(cpu_threads.NUM_THREADS, "3")
    assert cpu_threads.num_threads(2) == 3
    for odd in ("0", "many", "-1"):
        monkeypatch.setenv(cpu_threads.NUM_THREADS, odd)
        assert cpu_threads.num_threads(2) == 4
