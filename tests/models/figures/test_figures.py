"""Each figure is drawn from made-up data, the same file every time; damaged data is named."""

import json

import pytest
import torch

from fewshard_models.bench.measurement import Budget
from fewshard_models.errors import DataError, RecipeError
from fewshard_models.figures.cnn_times import CnnTime, measure_cnns, read_times, write_times
from fewshard_models.figures.curves import kilojoules
from fewshard_models.figures.patterns import is_masked, kept_shares
from fewshard_models.figures.speedups import System, read_systems
from fewshard_models.figures.sweep import Sweep, run
from fewshard_models.figures.tradeoff import Point, read_points, write_points
from fewshard_models.image import FewshardImageConfig
from fewshard_models.image import FewshardImageForImageClassification as Cnn
from fewshard_models.recipes.workspace import Workspace

POINTS = [
    Point(f"{kind}-{size}", kind, size * 10**7, 0.8 + size / 100, 10_000, 4, "short run")
    for kind in ("dense", "pruned")
    for size in (1, 2, 5)
]
TIMES = [CnnTime(width, batch, 100, 40, 2.0, 1.0) for width in (1.0, 2.0) for batch in (1, 64)]


def cnn() -> Cnn:
    torch.manual_seed(0)
    config = FewshardImageConfig(stem_channels=8, stage_channels=[16] * 3, block_channels=[16] * 3)
    return Cnn(config).eval()


def masked() -> Cnn:
    model = cnn()
    with torch.no_grad():
        conv = model.stages[0].block[0].conv
        conv.weight[3] = 0
        conv.weight[:, :, 0] = 0
    return model


def lines() -> list[dict]:
    usual = {"lr": 0.1, "cpu_seconds": 20.0, "cpu_share": 0.9}
    return [
        {"step": 20 * n, "epoch": n, "loss": 1 / n, "seconds": 10.0 * n, "accuracy": 0.9, **usual}
        for n in (1, 2, 3)
    ]


def draw(name, folder):
    from fewshard_models.figures import cnn_times, curves, patterns, speedups, tradeoff

    calls = {
        "figure2": lambda: tradeoff.draw_tradeoff(POINTS, folder),
        "figure3": lambda: cnn_times.draw_times(TIMES, folder),
        "curves": lambda: curves.draw_curves({"one": lines(), "two": lines()}, folder),
        "speedups": lambda: speedups.draw_speedups([System("moe", 2.0, {1: 1.1, 64: 1.5}, -0.3)], folder),
        "pattern-masked": lambda: patterns.draw_pattern(masked(), None, "masked", folder),
        "pattern-cut": lambda: patterns.draw_pattern(
            Cnn(FewshardImageConfig(stem_channels=8, stage_channels=[8] * 3, block_channels=[8] * 3)),
            cnn(),
            "cut",
            folder,
        ),
    }
    return calls[name]()


@pytest.mark.parametrize(
    "name", ["figure2", "figure3", "curves", "speedups", "pattern-masked", "pattern-cut"]
)
def test_both_files_are_written_and_the_svg_repeats(name, tmp_path):
    pytest.importorskip("matplotlib", reason="figures need the extra plots")
    paths = draw(name, tmp_path / "a")
    assert [path.name for path in paths] == [f"{name}.svg", f"{name}.png"]
    assert all(path.stat().st_size > 5000 for path in paths)
    assert draw(name, tmp_path / "b")[0].read_bytes() == paths[0].read_bytes()


def test_a_network_that_is_neither_masked_nor_cut_has_no_pattern(tmp_path):
    from fewshard_models.figures.patterns import draw_pattern

    assert draw_pattern(cnn(), cnn(), "dense", tmp_path) == []
    assert draw_pattern(cnn(), None, "dense", tmp_path) == []


def test_shares_of_kept_weights():
    model = masked()
    assert is_masked(model)
    assert not is_masked(cnn())
    shares = kept_shares(model.stages[0].block[0].conv)
    assert shares.shape == (16, 16)
    assert shares[3].sum() == 0
    assert shares[0, 0] == pytest.approx(6 / 9)


def test_energy_is_processor_time_times_watts():
    assert kilojoules(lines()) == pytest.approx([0.2, 0.4, 0.6])
    on_gpu = [{**line, "gpu_watts": 100.0} for line in lines()]
    seconds = [line["seconds"] for line in on_gpu]
    assert kilojoules(on_gpu) == pytest.approx([0.2 * (i + 1) + 0.1 * s for i, s in enumerate(seconds)])


@pytest.mark.parametrize(("read", "key"), [(read_points, "points"), (read_times, "times")])
def test_damaged_data_is_named(read, key, tmp_path):
    file = tmp_path / "figure.json"
    file.write_text(f'{{\n"{key}": [')
    with pytest.raises(DataError, match=r"figure\.json, line 2"):
        read(file)
    file.write_text(json.dumps({key: [{"name": "x"}]}))
    with pytest.raises(DataError, match=r"figure\.json cannot be used"):
        read(file)


def test_points_and_times_come_back(tmp_path):
    assert read_points(write_points(POINTS, {"command": "x"}, tmp_path)) == POINTS
    assert read_times(write_times(TIMES, {"command": "x"}, tmp_path)) == TIMES
    assert TIMES[0].realised == pytest.approx(2.0 * 0.4)


def test_a_speed_up_is_read_beside_the_dense_model_of_the_same_task(tmp_path):
    def row(system, kind, share, accuracy, speedup):
        speeds = [{"batch": batch, "speedup": speedup} for batch in (1, 8, 64)]
        found = {"system": system, "kind": kind, "macs_share": share, "speeds": speeds}
        return {**found, "accuracy": {"mean": accuracy}}

    rows = [row("a-dense", "dense", None, 0.9, None), row("b-dense", "dense", None, 0.5, None)]
    file = tmp_path / "table2.json"
    file.write_text(json.dumps({"rows": [*rows, row("b-moe", "moe", 0.25, 0.51, 1.5)]}))
    (found,) = read_systems(file)
    assert found == System("b-moe", 4.0, {1: 1.5, 64: 1.5}, pytest.approx(1.0))
    file.write_text(json.dumps({"rows": rows}))
    with pytest.raises(DataError, match="nothing to draw"):
        read_systems(file)
    file.write_text("[]")
    with pytest.raises(DataError, match="no result of `fewshard table2`"):
        read_systems(file)


def test_four_sizes_are_timed_dense_and_cut():
    found = measure_cnns("cpu", "fp32", widths=(0.2, 0.3), budget=Budget(0, 2, 2, 1))
    assert [(time.width, time.batch) for time in found] == [(0.2, 1), (0.3, 1), (0.2, 64), (0.3, 64)]
    assert all(time.dense_ms > 0 and time.sparse_macs <= 0.4 * time.dense_macs for time in found)


@pytest.mark.slow
def test_the_sweep_trains_each_network_once(data, tmp_path):
    sweep = Sweep(Workspace(tmp_path, epochs=2), widths=(0.2, 0.3), shares=(0.6,))
    said: list[str] = []
    points = run(sweep, said.append)
    assert [(point.kind, point.epochs) for point in points] == [("dense", 2), ("dense", 2), ("pruned", 2)]
    assert points[2].macs <= 0.6 * points[1].macs
    assert points[0].num_items == 60
    before = (tmp_path / "sweep-dense-0.3" / "model" / "model.safetensors").stat().st_mtime_ns
    assert run(sweep) == points
    assert (tmp_path / "sweep-dense-0.3" / "model" / "model.safetensors").stat().st_mtime_ns == before


def test_the_sweep_needs_an_epoch_before_and_one_after_pruning(tmp_path):
    with pytest.raises(RecipeError, match="2 epochs, half"):
        run(Sweep(Workspace(tmp_path, epochs=1)))
    assert not list(tmp_path.iterdir())
