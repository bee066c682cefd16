"""The kernel benchmark on tiny layers: everybody computes the same, and the report says what was found."""

import json
import math
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
import torch

from fewshard_models.bench import baselines, kernels
from fewshard_models.bench.baselines import (
    DENSE,
    OURS,
    PIPELINE,
    REFERENCE,
    TRANSFORMERS,
    external_builders,
    transformers_name,
)
from fewshard_models.bench.grid import DEVICE_DTYPES, ROUTINGS, TARGET_TOKENS, Point, Shape, points
from fewshard_models.bench.kernels import TOLERANCES, Measured, Row, Setup
from fewshard_models.bench.measurement import Budget, Roofline, interleaved, last_level_cache_bytes, measure
from fewshard_models.bench.problem import make_layer, make_problem
from fewshard_models.bench.report import Report
from fewshard_models.bench.targets import checks

THREE = [transformers_name(name) for name in TRANSFORMERS]
PLAIN, GATED = Shape(48, 96), Shape(32, 64, gated=True)
MICRO = [
    Point(PLAIN, "fp32", 1),
    Point(PLAIN, "fp32", 300, top_k=2, routing="zipf"),
    Point(PLAIN, "bf16", 33, num_experts=16, routing="one-hot"),
    Point(GATED, "fp32", 20, top_k=6),
    Point(GATED, "bf16", 40),
]
SETUP = Setup("cpu", Budget(seconds=0.01, min_rounds=3, max_rounds=4, warmups=1), num_copies=2)


@pytest.fixture(scope="module", autouse=True)
def _small_limits():
    """The peak is measured with a product of a size that a test can afford."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("fewshard_models.bench.measurement._PRODUCT_SIZE", {"cpu": 128})
        patch.setattr(kernels, "last_level_cache_bytes", lambda _device: 2**20)
        yield


@pytest.fixture(scope="module")
def measured() -> Measured:
    return kernels.run(MICRO, SETUP)


def test_every_peer_computes_the_same(measured: Measured) -> None:
    assert [row.peer for row in measured.rows] == [OURS, REFERENCE, *THREE, PIPELINE, DENSE] * len(MICRO)
    for row in measured.rows:
        assert row.skipped is None, row
        assert row.error is not None
        assert row.error <= TOLERANCES[row.point.dtype], row


def test_the_error_is_of_what_the_peer_returned() -> None:
    problem = make_problem(MICRO[1], make_layer(MICRO[1], 2, "cpu"), "cpu")
    wrong = {OURS: lambda found: lambda index: 1.5 * baselines.builders()[REFERENCE](found)(index)}
    (row,) = kernels.measure_point(problem, wrong, SETUP, Roofline(1e9, 1e9))
    assert row.error == pytest.approx(0.5, abs=1e-4)


def test_the_figures_of_a_row_fit_each_other(measured: Measured) -> None:
    for row in measured.rows:
        assert row.rounds in (3, 4)
        assert 0 < row.median_s <= row.p90_s
        assert row.launches is None
        assert row.peak_bytes is None
        assert row.activation_share > 0
    ours = {row.point: row.median_s for row in measured.rows if row.peer == OURS}
    assert all(row.times_ours == pytest.approx(row.median_s / ours[row.point]) for row in measured.rows)


def test_calls_rotate_over_copies_and_then_over_experts() -> None:
    point = Point(PLAIN, "fp32", 50, num_experts=4)
    problem = make_problem(point, make_layer(point, 3, "cpu"), "cpu")
    assert [problem.copy(index) for index in range(5)] == [0, 1, 2, 0, 1]
    counts = [problem.routing(3 * turn).experts.flatten().bincount(minlength=4) for turn in range(5)]
    assert all(torch.equal(after, before.roll(1)) for before, after in pairwise(counts))
    assert not torch.equal(counts[0], counts[1])
    assert len({weights.w1.data_ptr() for weights in problem.layer.copies}) == 3


def test_routings_have_the_shape_they_are_named_after() -> None:
    drawn = {}
    for routing in ROUTINGS:
        point = Point(PLAIN, "fp32", 2000, top_k=2, routing=routing)
        experts = make_problem(point, make_layer(point, 1, "cpu"), "cpu").routings[0].experts
        assert (experts[:, 0] != experts[:, 1]).all()
        drawn[routing] = experts.flatten().bincount(minlength=8)
    assert drawn["one-hot"].tolist() == [2000, 2000, 0, 0, 0, 0, 0, 0]
    assert drawn["zipf"][0] > 3 * drawn["zipf"][-1] > 0
    assert drawn["uniform"].min() > 0.8 * drawn["uniform"].max()


def test_dense_layers_are_as_wide_as_the_experts_of_a_token() -> None:
    layer = make_layer(MICRO[3], 2, "cpu")
    dense = layer.dense(3)
    assert len(dense) == 4
    assert all(up.shape == (3 * 2 * 64, 32) and down.shape == (32, 3 * 64) for up, down in dense)
    assert dense[0][0].data_ptr() == layer.copies[0].w1.data_ptr()


def test_a_peer_that_would_fill_the_memory_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(baselines, "MAX_GATHERED_BYTES", 1000)
    rows = kernels.run(MICRO[:1], SETUP).rows
    reasons = {row.peer: row.skipped for row in rows if row.skipped}
    assert list(reasons) == [transformers_name("batched_mm")]
    assert "copies an expert for each row" in reasons["transformers batched_mm"]
    assert f"- transformers batched_mm is left out: {reasons['transformers batched_mm']}." in _markdown(rows)


def test_a_peer_that_fails_is_left_out_with_its_words() -> None:
    def failing(_problem: object) -> baselines.Runner:
        def run(_index: int) -> torch.Tensor:
            raise NotImplementedError("no kernel for this\nand a trace")

        return run

    problem = make_problem(MICRO[0], make_layer(MICRO[0], 2, "cpu"), "cpu")
    everyone = {OURS: baselines.builders()[OURS], "broken": failing}
    ours, broken = kernels.measure_point(problem, everyone, SETUP, Roofline(1e9, 1e9))
    assert ours.skipped is None
    assert broken.skipped == "fails here: no kernel for this"


def test_source_trees_of_others_need_a_gpu_and_a_known_name(tmp_path: Path) -> None:
    setup = replace(SETUP, peers={"scattermoe": tmp_path, "vllm": tmp_path})
    rows = kernels.run(MICRO[:1], setup).rows
    assert {row.peer: row.skipped for row in rows[-2:]} == {
        "scattermoe": "needs a GPU",
        "vllm": "needs a GPU",
    }
    with pytest.raises(ValueError, match="no peer megablocks; there are scattermoe, vllm"):
        external_builders({"megablocks": tmp_path})


def test_rounds_are_interleaved_and_numbered() -> None:
    seen: list[tuple[str, int]] = []
    calls = {name: lambda index, name=name: seen.append((name, index)) for name in "ab"}

    def clock(call) -> float:
        call()
        return float(len(seen))

    times = interleaved(calls, clock, Budget(seconds=0, min_rounds=2, warmups=1))
    assert [index for _, index in seen] == [0, 1, 2, 3, 4, 5]
    assert all({name for name, _ in seen[start : start + 2]} == {"a", "b"} for start in (0, 2, 4))
    assert sorted(times["a"] + times["b"]) == [3.0, 4.0, 5.0, 6.0]
    # A call's seconds are its own, whatever the order of the round.
    assert times["a"] == [index + 1.0 for name, index in seen if name == "a" and index >= 2]


def test_the_order_of_a_round_changes() -> None:
    seen: list[str] = []
    calls = {name: lambda _index, name=name: seen.append(name) for name in "abcd"}
    interleaved(calls, lambda call: call() or 1.0, Budget(seconds=0, min_rounds=8, warmups=1))
    assert len({tuple(seen[start : start + 4]) for start in range(0, len(seen), 4)}) > 3


def test_the_budget_bounds_the_rounds() -> None:
    budget = Budget(seconds=10, min_rounds=5, max_rounds=50)
    assert [budget.num_rounds(round_s) for round_s in (100.0, 1.0, 0.01, 0.0)] == [5, 10, 50, 50]


def test_the_floor_is_the_slower_of_products_and_bytes() -> None:
    point = Point(Shape(10, 20), "fp32", 7, top_k=2)
    flop, numbers = 2 * 14 * 2 * 10 * 20, 3 * 2 * 10 * 20 + 2 * 7 * 10
    assert Roofline(1.0, 1e9).floor_s(point, 3, 4) == pytest.approx(flop)
    assert Roofline(1e9, 1.0).floor_s(point, 3, 4) == pytest.approx(4 * numbers)


def test_copies_exceed_the_cache_together() -> None:
    point = Point(Shape(384, 1536), "bf16", 1)
    layer_bytes = 8 * 2 * 384 * 1536 * 2
    assert (kernels.num_copies(point, 260 * 2**20) - 1) * layer_bytes >= 260 * 2**20
    assert kernels.num_copies(point, 2**10) == 2
    assert kernels.num_copies(Point(PLAIN, "bf16", 1), 2**40) == 64


def test_the_largest_cache_is_found(tmp_path: Path) -> None:
    for index, size in enumerate(("48K", "2M", "1024K")):
        (tmp_path / f"index{index}").mkdir()
        (tmp_path / f"index{index}" / "size").write_text(f"{size}\n")
    assert last_level_cache_bytes("cpu", tmp_path) == 2 * 2**20
    assert last_level_cache_bytes("cpu", tmp_path / "none") == 32 * 2**20


def test_the_default_grid_holds_every_target_and_no_point_twice() -> None:
    grid = points("default", "cpu")
    assert len(grid) == len(set(grid))
    for shape in (Shape(384, 1536), Shape(768, 3072)):
        wanted = {Point(shape, dtype, tokens) for dtype in DEVICE_DTYPES["cpu"] for tokens in TARGET_TOKENS}
        assert wanted <= set(grid)
    assert max(point.num_tokens for point in points("full", "cpu")) == 4096
    assert max(point.num_tokens for point in points("full", "cuda")) == 65536
    assert {point.dtype for point in points("quick", "cpu", ["fp16"])} == {"fp16"}


def rows_at(num_tokens: int, ours: float, three: tuple[float, float, float], dense: float) -> list[Row]:
    point = Point(Shape(384, 1536), "bf16", num_tokens)
    times = {OURS: ours, **dict(zip(THREE, three, strict=True)), DENSE: dense}
    return [Row(point, peer, median_s=seconds, activation_share=0.25) for peer, seconds in times.items()]


@pytest.mark.parametrize(
    ("num_tokens", "ours", "best", "dense", "met"),
    [
        (16, 1.0, 1.31, 0.1, True),
        (16, 1.0, 1.29, 9.0, False),
        (17, 1.0, 2.01, 0.1, True),
        (256, 1.0, 1.99, 9.0, False),
        (257, 1.0, 1.51, 0.1, True),
        (257, 1.0, 1.0, 0.84, True),
        (4096, 1.0, 1.49, 0.83, False),
    ],
)
def test_targets(num_tokens: int, ours: float, best: float, dense: float, met: bool) -> None:
    (check,) = checks(rows_at(num_tokens, ours, (best + 1, best, best + 2), dense))
    assert check.met is met
    assert check.best_of_three == "transformers batched_mm"
    assert check.gain == pytest.approx(best / ours)
    assert check.times_dense == pytest.approx(ours / dense)


def test_only_points_of_the_targets_are_checked() -> None:
    rows = rows_at(16, 1.0, (2.0, 2.0, 2.0), 1.0)
    assert len(checks(rows)) == 1
    for change in ({"num_tokens": 16384}, {"top_k": 2}, {"routing": "zipf"}, {"shape": Shape(1024, 4096)}):
        moved = [replace(row, point=replace(row.point, **change)) for row in rows]
        assert checks(moved) == []
    assert checks([row for row in rows if row.peer != DENSE]) == []


def _markdown(rows: list[Row]) -> str:
    return Report("fewshard bench kernels", Measured("cpu", rows, {}, 2**20)).as_markdown()


def test_the_report_checks_the_targets() -> None:
    text = _markdown([*rows_at(16, 1.0, (2.0, 2.5, 3.0), 1.0), *rows_at(64, 1.0, (1.5, 2.5, 3.0), 0.5)])
    assert "## CPU targets" in text
    assert "- bf16: 1 of 2 met" in text
    table = [line for line in text.splitlines() if line.startswith("| 384x1536 | bf16 ")]
    assert table == [
        "| 384x1536 | bf16 | 16 | 1000.000 | eager | 2.00x | 1.00x | 25 % | ≥ 1.3x the best of three | met |",
        "| 384x1536 | bf16 | 64 | 1000.000 | eager | 1.50x | 2.00x | 25 % | ≥ 2x the best of three "
        "| **missed** |",
    ]


def test_the_files(measured: Measured, tmp_path: Path) -> None:
    report = Report("fewshard bench kernels --quick", measured)
    as_json, as_markdown = report.write(tmp_path / "results")
    found = json.loads(as_json.read_text())
    assert found["command"] == "fewshard bench kernels --quick"
    assert {"date", "commit", "cpu", "cores", "threads", "python", "torch", "transformers"} <= set(
        found["machine"]
    )
    assert set(found["rooflines"]) == {"fp32", "bf16"}
    assert found["copies_of_weights"]["48x96 fp32, 8 experts"] == 2
    assert len(found["rows"]) == len(measured.rows)
    for row in found["rows"]:
        assert {"hidden", "width", "gated", "dtype", "experts", "top_k", "routing", "tokens"} <= set(row)
        assert {"peer", "median_s", "p90_s", "times_ours", "roofline_share", "error", "launches"} <= set(row)
        assert math.isfinite(row["median_s"])
    text = as_markdown.read_text()
    assert all(f"### {point}" in text for point in MICRO)
    assert "CPU targets" not in text, "the micro grid has no point with a target"


def test_a_peak_is_the_best_time_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fewshard_models.bench.measurement._UNKNOWN_CACHE_BYTES", 1000)
    seconds = iter([9.0, 2.0, *[9.0] * 5, 9.0, 0.5, *[9.0] * 5])
    found = measure("fp32", "cpu", lambda _call: next(seconds), cache_bytes=1000)
    assert found == Roofline(flop_per_s=2 * 128**3 / 2.0, bytes_per_s=2 * 1000 / 0.5)
