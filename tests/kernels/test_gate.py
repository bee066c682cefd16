"""The gate, with clocks and candidates that are made up."""

import json
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from fewshard_kernels.gate import DENSE, Gate, Key, bucket, wall_clock

KEY = Key("a CPU", "sparse_linear 2:4", (384, 1536), "bfloat16", 64)


class Bench:
    """Candidates that take the seconds they are told to, one list entry a call; the last one goes on."""

    def __init__(self, **seconds: list[float]) -> None:
        self.seconds = seconds
        self.calls: list[str] = []

    @property
    def candidates(self) -> dict[str, Callable[[], object]]:
        return {name: lambda name=name: self.calls.append(name) for name in self.seconds}

    def clock(self, call: Callable[[], object]) -> float:
        call()
        times = self.seconds[self.calls[-1]]
        return times.pop(0) if len(times) > 1 else times[0]


@pytest.mark.parametrize(
    ("sparse_s", "chosen"), [(0.5, "sparse"), (0.95, "sparse"), (0.96, DENSE), (1.0, DENSE), (3.0, DENSE)]
)
def test_sparse_must_be_faster_by_the_margin(sparse_s: float, chosen: str) -> None:
    bench = Bench(dense=[1.0], sparse=[sparse_s])
    assert Gate(bench.clock).choose(KEY, bench.candidates) == chosen


def test_the_margin_can_be_set() -> None:
    bench = Bench(dense=[1.0], sparse=[0.8])
    assert Gate(bench.clock, margin=0.25).choose(KEY, bench.candidates) == DENSE
    assert Gate(bench.clock, margin=0.0).choose(KEY, bench.candidates) == "sparse"


def test_the_fastest_of_several_is_chosen() -> None:
    bench = Bench(one=[0.6], dense=[1.0], two=[0.4])
    assert Gate(bench.clock).choose(KEY, bench.candidates) == "two"


def test_medians_decide_not_means_or_single_times() -> None:
    bench = Bench(dense=[1.0, 0.01, 1.0], sparse=[0.5, 99.0, 0.5])
    gate = Gate(bench.clock, repeats=3)
    assert gate.choose(KEY, bench.candidates) == "sparse"
    assert gate.decisions[0].seconds == {"dense": 1.0, "sparse": 0.5}


def test_rounds_are_interleaved_after_one_try_of_each() -> None:
    bench = Bench(dense=[1.0], sparse=[0.5])
    Gate(bench.clock, repeats=3).choose(KEY, bench.candidates)
    assert bench.calls == ["dense", "sparse"] * 4


def test_a_key_is_measured_once_and_each_key_for_itself() -> None:
    bench = Bench(dense=[1.0], sparse=[0.5])
    gate = Gate(bench.clock)
    assert gate.known(KEY) is None
    gate.choose(KEY, bench.candidates)
    assert gate.known(KEY) is gate.decisions[0]
    num_calls = len(bench.calls)
    bench.seconds["sparse"] = [2.0]
    assert gate.choose(KEY, bench.candidates) == "sparse"
    assert len(bench.calls) == num_calls
    other = Key(KEY.device, KEY.op, KEY.shape, KEY.dtype, 128)
    assert gate.choose(other, bench.candidates) == DENSE
    assert [each.key for each in gate.decisions] == [KEY, other]


def test_a_remembered_choice_that_is_gone_is_measured_again() -> None:
    bench = Bench(dense=[1.0], sparse=[0.5])
    gate = Gate(bench.clock)
    gate.choose(KEY, bench.candidates)
    del bench.seconds["sparse"]
    assert gate.choose(KEY, bench.candidates) == DENSE


def test_reasons_name_both_times_and_the_margin() -> None:
    bench = Bench(dense=[100e-6], sparse=[60e-6])
    gate = Gate(bench.clock)
    gate.choose(KEY, bench.candidates)
    bench.seconds["sparse"] = [98e-6]
    gate.choose(Key("a CPU", "other", (8, 8), "float32", 1), bench.candidates)
    assert gate.explain() == [
        (
            "sparse_linear 2:4 384x1536 bfloat16, up to 64 rows, on a CPU",
            "sparse",
            "sparse took 60 us, dense 100 us",
        ),
        (
            "other 8x8 float32, up to 1 rows, on a CPU",
            "dense",
            "sparse took 98 us, dense 100 us; it must be 5% faster to be chosen",
        ),
    ]


def test_a_sparse_path_that_fails_is_not_chosen_and_says_so() -> None:
    def broken() -> None:
        raise NotImplementedError("no kernel for bfloat16\nand more")

    gate = Gate(lambda _call: 1.0)
    assert gate.choose(KEY, {DENSE: lambda: None, "sparse": broken}) == DENSE
    assert gate.decisions[0].reason == "sparse fails here: no kernel for bfloat16"
    with pytest.raises(NotImplementedError):
        Gate(lambda _call: 1.0).choose(KEY, {DENSE: broken, "sparse": lambda: None})


def test_dense_alone_needs_no_measurement() -> None:
    bench = Bench(dense=[1.0])
    gate = Gate(bench.clock)
    assert gate.choose(KEY, bench.candidates) == DENSE
    assert gate.decisions[0].reason == "there is no sparse path here"
    with pytest.raises(ValueError, match="lack 'dense'"):
        gate.choose(KEY, {"sparse": lambda: None})


def test_decisions_outlive_the_gate_in_a_file(tmp_path: Path) -> None:
    path, bench = tmp_path / "gate.json", Bench(dense=[1.0], sparse=[0.5])
    first = Gate(bench.clock, path=path, version="torch 1")
    first.choose(KEY, bench.candidates)
    bench.calls.clear()
    second = Gate(bench.clock, path=path, version="torch 1")
    assert second.decisions == first.decisions
    assert second.choose(KEY, bench.candidates) == "sparse"
    assert bench.calls == []
    assert Gate(bench.clock, path=path, version="torch 2").decisions == ()
    assert [file.name for file in tmp_path.iterdir()] == ["gate.json"]


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"version": "", "decisions": [{"key": {}}]}'])
def test_a_file_of_another_kind_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "gate.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=r"gate\.json is not a file of measured decisions; delete it"):
        Gate(path=path)


def test_the_file_is_json(tmp_path: Path) -> None:
    path, bench = tmp_path / "gate.json", Bench(dense=[1.0], sparse=[0.5])
    Gate(bench.clock, path=path).choose(KEY, bench.candidates)
    (entry,) = json.loads(path.read_text())["decisions"]
    assert entry["chosen"] == "sparse"
    assert entry["key"]["shape"] == [384, 1536]


def test_threads_measure_a_key_once() -> None:
    bench = Bench(dense=[1.0], sparse=[0.5])
    gate = Gate(bench.clock, repeats=5)
    threads = [threading.Thread(target=gate.choose, args=(KEY, bench.candidates)) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(bench.calls) == 2 * 6


@pytest.mark.parametrize(("num_rows", "expected"), [(0, 1), (1, 1), (2, 2), (3, 4), (64, 64), (65, 128)])
def test_buckets_are_powers_of_two(num_rows: int, expected: int) -> None:
    assert bucket(num_rows) == expected


def test_the_wall_clock_runs_the_call() -> None:
    calls: list[int] = []
    assert 0 <= wall_clock(lambda: calls.append(1)) < 1
    assert calls == [1]
