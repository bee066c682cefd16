"""What the chaos and exchange benchmarks make of what they saw; the runs themselves are slow tests."""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from fewshard_models.sharding import contiguous
from fewshard_serve.placement.local_search import num_moves

ROOT = Path(__file__).parents[2]


def benchmark(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, ROOT / f"benchmarks/{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def chaos() -> ModuleType:
    return benchmark("chaos")


def test_rotating_moves_every_expert(chaos: ModuleType) -> None:
    first = contiguous(3, 8, 4, 2)
    assert num_moves(first, chaos.rotated(first)) == 24
    chaos.rotated(first).check()


def test_an_answer_fits_within_the_tolerance_alone(chaos: ModuleType) -> None:
    expected = chaos.Expected(["a", "b"], np.array([[1.0, -1.0], [2.0, 0.0]], np.float32), 0.01)
    assert expected.fits(1, np.array([2.009, 0.0], np.float32))
    assert not expected.fits(1, np.array([2.02, 0.0], np.float32))
    assert not expected.fits(0, np.array([np.nan, -1.0], np.float32))


def answers(chaos: ModuleType, slow_until: float) -> list[object]:
    """Ten a second from one second before to nine after; those sent in [0, slow_until) take a second."""
    times = np.arange(-1.0, 9.0, 0.1)
    return [chaos.Answer(at, 1.0 if 0 <= at < slow_until else 0.01, "ok") for at in times]


@pytest.mark.parametrize(("slow_until", "expected"), [(0.0, 0.0), (2.0, 1.75), (99.0, None)])
def test_full_speed_is_when_a_second_of_answers_is_quick_again(
    chaos: ModuleType, slow_until: float, expected: float | None
) -> None:
    running = chaos.Chaos.__new__(chaos.Chaos)
    running._quiet_p50 = 0.01
    assert running._full_speed(answers(chaos, slow_until), 0.0) == expected


def test_the_table_has_a_line_for_each_phase(chaos: ModuleType) -> None:
    phase = chaos.Phase("kill", 10, 1, 2, 3.0, 4.0, 0.5, None, 6.25)
    table = chaos.as_markdown([phase]).splitlines()
    assert table[-1] == "| kill | 10 | 1 | 2 | 3.0 | 4.0 | 0.5 | - | 6.25 |"
    assert len({line.count("|") for line in table}) == 1


def test_sentences_are_as_many_as_asked_for(chaos: ModuleType) -> None:
    assert len(chaos.sentences(130)) == 130
    assert all(chaos.sentences(70))


def test_the_exchange_is_told_row_by_row() -> None:
    table = benchmark("exchange").as_markdown([(8, 0.5, 0.25, 1.0)]).splitlines()
    assert table[-1] == "| 8 | 0.50 | 0.25 | 1.00 |"
    assert len({line.count("|") for line in table}) == 1
